"""View models: what each tab shows, as plain functions of a ladder and a state; Gradio is not needed here."""
