"""One file a method: ASTRA, ELIAS, contrastive pre-training, label trees."""
