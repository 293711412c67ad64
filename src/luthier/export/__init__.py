"""Forms of a trained model for use elsewhere: one file for each."""
