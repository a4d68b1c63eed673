"""The training methods, one file for each: ASTRA, ELIAS, contrastive pre-training, label trees."""
