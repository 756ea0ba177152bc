"""What a trained model is worth: bounds, likelihoods, samples."""
