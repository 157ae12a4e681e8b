"""The app: samples and distances across step counts, side by side, in a browser.

    compute.py   the one queue in which everything that takes long is computed
    ladders.py   ladders to show (the zoo's, the user's runs) and their models, within a bound on memory
    condition.py the class and the guidance that are asked for
    state.py     values from a browser or a link, made safe
    html.py, chart.py   pictures, tables and charts as HTML and SVG, with text for those who cannot see them
    views/       one view model a tab: plain functions of a ladder and a state
    tabs/        one module a tab: its controls in Gradio, bound to its view model
    server.py    puts the tabs together and serves them on this machine

Nothing but `tabs` and `server` imports Gradio.
"""
