"""One module a tab: controls in Gradio, bound to the tab's view model."""

import os

# Read when gradio is imported, which every module below does: nothing is reported outside.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
