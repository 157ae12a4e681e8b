"""Puts the tabs together and serves them on this machine, to this machine alone."""

import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from starlette.middleware import Middleware

from pdlab.app import html, state
from pdlab.app.compute import Compute
from pdlab.app.ladders import Shelf
from pdlab.app.requests import Requests, quiet
from pdlab.app.tabs import bench, compare, curve, first, lab, lineage, metrics, tour
from pdlab.app.tabs.binding import QUICK, Context, Tab
from pdlab.errors import PdlabError

import gradio as gr  # isort: skip  # after pdlab.app.tabs, which turns its reports off

TABS = (
    ("Compare", compare),
    ("FID curve", curve),
    ("Lineage", lineage),
    ("Sampler bench", bench),
    ("Metrics", metrics),
    ("2-D lab", lab),
    ("Tour", tour),
)
ADDRESS = "127.0.0.1"
HEADER = (
    "<h1>Progressive distillation, side by side</h1><p>A diffusion sampler calls its network many times. "
    "Distillation halves the number of calls, again and again, down to one.</p>"
)


def build(shelf: Shelf, compute: Compute | None = None) -> gr.Blocks:
    """The app over the ladders of `shelf`, everything live going through `compute`."""
    names = list(shelf.ladders)
    with gr.Blocks(title="pdlab", analytics_enabled=False) as app:
        gr.HTML(HEADER, elem_id="header")
        first_name = names[0] if names else None
        model = gr.Radio(names, value=first_name, label="Ladder", visible=len(names) > 1, elem_id="ladder")
        context = Context(shelf, compute or Compute(), model)
        top = first.build(context)
        built, items = [], []
        with gr.Tabs(elem_id="tabs") as tabs:
            for title, module in TABS:
                alone = module in (lab, tour)
                with gr.Tab(title, id=module.NAME, visible=alone or bool(names)) as item:
                    built.append(module.build(context))
                items.append(item)
        search = gr.Textbox(visible=False)
        for tab in built:
            for control, value in zip(
                tab.controls.values(), _restored(shelf, first_name or "", tab, {}), strict=False
            ):
                _begin(control, value)

        def restore(address: str, chosen: str | None) -> list[Any]:
            parameters = state.query(address)
            there = list(shelf.ladders)
            name = state.one(chosen or parameters.get("model"), there, there[0] if there else "")
            selected = state.one(
                parameters.get("tab"), [tab.name for tab in built], built[0].name if there else lab.NAME
            )
            updates: list[Any] = [
                gr.update(choices=there, value=name or None, visible=len(there) > 1),
                gr.update(selected=selected),
                *(gr.update(visible=tab.alone or bool(there)) for tab in built),
                first.shown(shelf, name),
                gr.update(visible=not there),
                gr.update(visible=bool(there)),
            ]
            for tab in built:
                updates += _restored(shelf, name, tab, parameters)
            return updates

        outputs = [model, tabs, *items, *top]
        for tab in built:
            outputs += [*tab.controls.values(), *tab.views]
        app.load(
            lambda address: restore(address, None),
            search,
            outputs,
            js="() => [location.search]",
            api_name="restore",
            **QUICK,
        ).then(None, js="() => { document.body.dataset.restored = ''; }")
        # A class or a guidance of one ladder may be none of another.
        asked = [f"{tab.name}.{key}" for tab in built for key in ("class", "guidance") if key in tab.controls]
        changed = json.dumps(["model", *asked])
        model.input(
            lambda name, address: restore(address, name),
            [model, search],
            outputs,
            js=f"name => {{ pdlab.link({changed}, [name]); return [name, location.search]; }}",
            api_name="choose",
            **QUICK,
        )
    app.queue(default_concurrency_limit=None)
    quiet(app)
    return app


def launch(
    runs: Path | None = None,
    port: int | None = None,
    *,
    block: bool = True,
    shelf: Shelf | None = None,
    compute: Compute | None = None,
) -> gr.Blocks:
    """Serve the app; returns it once it answers (`block` keeps it up until Ctrl-C).

    `port` None takes a free one from 7860 on. Raises PdlabError for a `runs` that holds nothing to show, and where
    no port can be had.
    """
    app = build(shelf or Shelf(runs), compute)
    here = files("pdlab.app")
    style, script = ((here / name).read_text() for name in ("style.css", "script.js"))
    try:
        _, address, _ = app.launch(
            server_name=ADDRESS,
            server_port=port,
            share=False,
            prevent_thread_lock=True,
            quiet=True,
            ssr_mode=False,
            inbrowser=False,
            footer_links=[],
            mcp_server=False,
            max_file_size=1,  # nothing is uploaded
            app_kwargs={"middleware": [Middleware(Requests, blocks=app)]},
            theme=gr.themes.Default(
                primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
            ),
            css=style,
            head=f"<script>{script}</script>",
        )
    except OSError:
        which = "the hundred ports from 7860 on" if port is None else f"port {port}"
        raise PdlabError(
            f"{which} cannot be served on (in use, or for the system alone): choose another with --port"
        ) from None
    if block:
        print(f"pdlab app: {address} (only from this machine; Ctrl-C stops it)", flush=True)
        app.block_thread()
    return app


def _begin(control: Any, value: Any) -> None:
    """What a control shows, and may be, before a link says otherwise."""
    if isinstance(value, dict):
        if "choices" in value:
            control.choices = [c if isinstance(c, tuple) else (str(c), c) for c in value["choices"]]
        for name in ("visible", "maximum"):
            if name in value:
                setattr(control, name, value[name])
        value = value.get("value")
    control.value = value


def _restored(shelf: Shelf, name: str, tab: Tab, parameters: state.Query) -> Sequence[Any]:
    """The values of a tab's controls and views; what cannot be shown says why in the tab's first view."""
    skipped = [gr.skip()] * (len(tab.controls) + len(tab.views))
    if not tab.alone and not name:
        return skipped
    given = state.given(parameters, tab.name, list(tab.controls))
    said = ""
    for _ in range(2):
        try:
            values = list(tab.restore(None if tab.alone else shelf.ladder(name), given))
            if said:
                values[len(tab.controls)] = f"{said}{values[len(tab.controls)]}"
            return values
        except PdlabError as error:
            said = html.note(str(error), "error")
            given["class"] = None  # the one thing in an address that is refused
    skipped[len(tab.controls)] = said
    return skipped
