"""Colours, markers and names, so that a model looks the same wherever it is drawn."""

#: Okabe and Ito's colours, told apart by colour-blind readers; shapes of markers tell them apart again.
COLOURS = {"teacher": "#D55E00", "distilled": "#0072B2", "floor": "#666666"}
NAMES = {"teacher": "undistilled, DDIM", "distilled": "distilled"}
MARKERS = {"teacher": "o", "distilled": "s"}
#: The palette in the order in which curves take it, each with a marker and a line of its own.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999933")
STYLES = (("o", "-"), ("s", "--"), ("^", "-."), ("D", ":"), ("v", "-"), ("P", "--"), ("X", "-."), ("<", ":"))
