"""Makes eden-tiny's weights from nothing; no part of the package."""
