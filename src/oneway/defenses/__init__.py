"""Release-time defenses: one per file, all under one contract."""
