"""Named reward terms, the presets that weigh them, and the rules that compute them."""
