"""Grows label trees and trains the classifiers of their nodes."""
