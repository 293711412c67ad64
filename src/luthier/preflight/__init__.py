"""Gates that prove, before and while a run starts, that it trains what it should; they fail closed."""
