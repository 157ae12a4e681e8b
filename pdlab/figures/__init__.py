"""Grids of images and charts of measured figures, which reports, the zoo, notebooks and the app share.

    style.py     colours, markers and names: a model looks the same wherever it is drawn
    mosaic.py    images side by side, as one image
    sheet.py     what every matplotlib figure here is made with
    grids.py     images with headings: by steps, by class, in rows
    charts.py    curves, spreads, points

Only the last three import matplotlib, and nothing that trains, samples or measures imports them.
"""
