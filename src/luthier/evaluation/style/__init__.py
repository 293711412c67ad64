"""How answers are written, beside how right they are: measurable features, and pairs that a judge prefers."""
