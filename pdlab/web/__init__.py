"""A ladder as a page: its students run in the reader's own browser, from any static host.

`site` writes it, from `students` (a ladder of the zoo's format, or a run), `packed` (weights in 12 bits) and
`runtime` (onnxruntime-web); what the browser gets as it is lies in `page/`.
"""
