"""Evaluation of trained models: bounds, likelihoods, samples."""
