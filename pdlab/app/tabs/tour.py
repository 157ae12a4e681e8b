"""Tour: seven stops that point at controls; the page's script shows the way and keeps score."""

import gradio as gr

from pdlab.app.tabs.binding import Context, Tab
from pdlab.app.views import tour

NAME = "tour"


def build(context: Context) -> Tab:
    """Builds the tab."""
    gr.HTML(tour.view())
    return Tab(NAME, {}, [], lambda ladder, given: [], alone=True)
