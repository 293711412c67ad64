"""A trained run in forms for elsewhere, each reloaded in a fresh process and compared with the trained model."""
