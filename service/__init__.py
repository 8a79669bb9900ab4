"""The serving stage: gateway, runners, and the definitions every other stage reads."""

import warnings

VERSION = "0.1.0"

# bentoml 1.4.39 builds its input types in a way pydantic 2.11 deprecates: one warning a type in every process.
warnings.filterwarnings("ignore", message="The `__get_pydantic_core_schema__` method", category=DeprecationWarning)
# feast 0.67 calls its on-demand views experimental whenever one is registered.
warnings.filterwarnings("ignore", message="On demand feature view is an experimental", category=RuntimeWarning)
