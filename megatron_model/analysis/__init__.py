"""What a trained model knows, character by character."""
