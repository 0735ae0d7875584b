"""Settings: schema, overrides and presets."""
