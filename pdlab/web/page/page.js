// The page: what is wished for, what is shown, and the loading of what that takes. worker.js computes.

const MIB = 2 ** 20;
const QUIET = 250; // milliseconds after the last move before the small pictures are drawn
const SWEEP = 4000; // milliseconds from noise to noise while it plays
const APART = 2; // grey levels that a drawn example may differ from PyTorch's

const $ = (id) => document.getElementById(id);
const all = (selector) => [...document.querySelectorAll(selector)];
const plural = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;

let ladder, runtime, stored, engine;
const wish = { from: 0, to: 1, mix: 0, class: 0, guidance: 0, steps: 1 };
const shown = { stage: "", rungs: new Map(), classes: new Map() }; // what each picture was drawn of
let touched = 0;
let playing = false;

function say(text, error = false) {
  $("status").textContent = text;
  $("status").className = error ? "error" : "";
}

// Loading: nothing is used whose hash is not the page's.

class Missing extends Error {}

async function get({ url, integrity }, what) {
  try {
    const answer = await fetch(url, { integrity, credentials: "omit" });
    if (answer.ok) return await answer.arrayBuffer();
  } catch {
    // no connection, or another file: the browser does not say which
  }
  const remedy = url.startsWith("https:") ? "make it again with --vendored" : "put its whole folder on the server again";
  throw new Missing(`${what} could not be loaded, or is not the file that this page was made with: ${url}. Reload the page, or ${remedy}.`);
}

class Engine {
  constructor(kind) {
    this.kind = kind;
    this.worker = new Worker("worker.js", { type: "module" });
    this.asked = new Map();
    this.students = new Map(); // promises
    this.ready = new Set();
    this.worker.onmessage = ({ data }) => {
      const { resolve, reject } = this.asked.get(data.id);
      this.asked.delete(data.id);
      data.error === undefined ? resolve(data.answer) : reject(new Error(data.error));
    };
    this.worker.onerror = (event) => {
      this.broken = new Error(event.message || "worker.js could not be started: put the whole folder on the server again");
      for (const { reject } of this.asked.values()) reject(this.broken);
      this.asked.clear();
    };
  }

  static async start(kind) {
    const made = new Engine(kind);
    const [module, wasm] = runtime.builds[kind];
    say(`Loading onnxruntime-web, ${(wasm.bytes / MIB).toFixed(0)} MiB before compression …`);
    const parts = await Promise.all([get(module, "onnxruntime-web"), get(wasm, "onnxruntime-web")]);
    await made.ask({ kind: "runtime", engine: kind, module: parts[0], wasm: parts[1] }, parts);
    return made;
  }

  ask(message, transfer = []) {
    const id = (this.count = (this.count ?? 0) + 1);
    return new Promise((resolve, reject) => {
      if (this.broken) throw this.broken;
      this.asked.set(id, { resolve, reject });
      this.worker.postMessage({ ...message, id }, transfer);
    });
  }

  // The student of so many steps, loaded once; it has then drawn the example as PyTorch does.
  student(steps) {
    if (!this.students.has(steps)) {
      const loading = this.load(ladder.rungs.find((rung) => rung.steps === steps));
      this.students.set(steps, loading);
      loading.catch(() => this.students.delete(steps));
    }
    return this.students.get(steps);
  }

  async load(rung) {
    const name = `the student of ${plural(rung.steps, "step")}`;
    say(`Loading ${name}, ${(rung.weights.bytes / MIB).toFixed(1)} MiB …`);
    const [graph, weights] = await Promise.all([get(rung.graph, name), get(rung.weights, name)]);
    await this.ask({ kind: "student", rung, graph, weights }, [graph, weights]);
    const k = ladder.first;
    const { image } = await this.draw(rung.steps, noiseOf(k), k % Math.max(1, ladder.classes.length), ladder.shown);
    const known = Uint8Array.from(atob(rung.example), (letter) => letter.charCodeAt(0));
    const apart = greys(image).reduce((most, value, i) => Math.max(most, Math.abs(value - known[i])), 0);
    if (apart > APART) throw new Error(`${name} draws another image here than in PyTorch, ${apart} grey levels apart`);
    this.ready.add(rung.steps);
    say(`Ready: ${name} draws here what it draws in PyTorch, to ${plural(apart, "grey level")} of 255.`);
  }

  draw(steps, noise, label, guidance) {
    return this.ask({ kind: "draw", steps, noise, shape: ladder.shape, label, guidance });
  }
}

// Noise

function noiseOf(number) {
  const size = ladder.shape.reduce((a, b) => a * b);
  if (number < ladder.noise.count) return stored.slice(number * size, (number + 1) * size);
  let state = number >>> 0;
  const uniform = () => { // mulberry32, in (0, 1]
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return (((t ^ (t >>> 14)) >>> 0) + 1) / 2 ** 32;
  };
  return Float32Array.from({ length: size }, () => Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform()));
}

// On the arc between two noises, where all between are as likely as they are.
function between(a, b, mix) {
  if (mix === 0 || mix === 1) return mix ? b : a;
  let dot = 0, aa = 0, bb = 0;
  for (let i = 0; i < a.length; i++) (dot += a[i] * b[i]), (aa += a[i] * a[i]), (bb += b[i] * b[i]);
  const angle = Math.acos(Math.min(1, Math.max(-1, dot / Math.sqrt(aa * bb))));
  const [left, right] = angle < 1e-4 ? [1 - mix, mix] : [Math.sin((1 - mix) * angle) / Math.sin(angle), Math.sin(mix * angle) / Math.sin(angle)];
  return a.map((value, i) => left * value + right * b[i]);
}

let ends = { from: [-1], to: [-1] }; // [number, noise]
function wished() {
  for (const end of ["from", "to"]) if (ends[end][0] !== wish[end]) ends[end] = [wish[end], noiseOf(wish[end])];
  return between(ends.from[1], ends.to[1], wish.mix);
}

// Pictures

function greys(image) {
  return Array.from(image, (value) => Math.round((Math.min(1, Math.max(-1, value)) + 1) * 127.5));
}

function paint(canvas, image, side) {
  const [channels, height, width] = ladder.shape;
  const size = width * height;
  if (!image || canvas.width !== width || canvas.height !== height) {
    Object.assign(canvas, { width, height }); // which clears it
    canvas.style.width = `${width * Math.max(1, Math.floor(side / width))}px`;
  }
  if (!image) return;
  const values = greys(image);
  const pixels = new ImageData(width, height);
  for (let i = 0; i < size; i++) {
    for (let c = 0; c < 3; c++) pixels.data[4 * i + c] = values[(channels === 3 ? c * size : 0) + i];
    pixels.data[4 * i + 3] = 255;
  }
  canvas.getContext("2d").putImageData(pixels, 0, 0);
}

const STAGE = innerWidth < 480 ? 256 : 320, RUNG = 160, SMALL = 64, NOISE = 48; // pixels, or the whole scale below

const label = (element, text) => element.setAttribute("aria-label", text);

function blank() {
  paint($("picture"), null, STAGE);
  delete $("picture").dataset.drawn;
  for (const canvas of all("[data-rung]")) {
    paint(canvas, null, RUNG);
    label(canvas, `${plural(Number(canvas.dataset.rung), "step")}: not loaded`);
    document.querySelector(`[data-time="${canvas.dataset.rung}"]`).textContent = "not loaded";
  }
  for (const canvas of all("[data-class]")) paint(canvas, null, SMALL);
}

const words = () => [
  ...(ladder.classes.length ? [ladder.classes[wish.class]] : []),
  ...(ladder.most ? [`guidance ${wish.guidance.toFixed(1)}`] : []),
];
const by = () => (engine.kind === "webgpu" ? "graphics card" : "processor");

function showRung(steps, image, milliseconds) {
  const canvas = document.querySelector(`[data-rung="${steps}"]`);
  if (!canvas) return;
  paint(canvas, image, RUNG);
  label(canvas, [`${ladder.name}, ${plural(steps, "step")}`, ...words()].join(", "));
  document.querySelector(`[data-time="${steps}"]`).textContent = `${plural(steps, "call")}, ${milliseconds.toFixed(0)} ms here`;
}

// Drawing: always what is wished for now; what was wished for meanwhile is passed over.

const key = (...parts) => JSON.stringify(parts);
const condition = () => [wish.from, wish.to, wish.mix, wish.guidance];

function next(quiet) {
  const steps = wish.steps;
  const now = key(...condition(), wish.class);
  if (!engine.ready.has(steps)) return () => engine.student(steps);
  if (shown.stage !== key(now, steps)) return () => drawStage(now, steps);
  if (!quiet) return null;
  for (const { steps: other } of ladder.rungs) {
    if (engine.ready.has(other) && shown.rungs.get(other) !== now) return () => drawRung(now, other);
  }
  const least = ladder.rungs[0].steps;
  const plain = key(...condition());
  const stale = ladder.classes.findIndex((_, k) => shown.classes.get(k) !== plain);
  return stale >= 0 && engine.ready.has(least) ? () => drawClass(plain, stale, least) : null;
}

let rate = 0, drawnAt = 0;
async function drawStage(now, steps) {
  const { image, milliseconds } = await engine.draw(steps, wished(), wish.class, wish.guidance);
  shown.stage = key(now, steps);
  shown.rungs.set(steps, now);
  const at = performance.now();
  rate = playing && at - drawnAt < 2000 ? (rate ? 0.8 * rate + 200 / (at - drawnAt) : 1000 / (at - drawnAt)) : 0;
  drawnAt = at;
  paint($("picture"), image, STAGE);
  showRung(steps, image, milliseconds);
  const told = [`${ladder.name}, student of ${plural(steps, "step")}`, plural(steps, "network call"), ...words()];
  label($("picture"), told.join(", "));
  $("caption").textContent = [...told, `${milliseconds.toFixed(0)} ms in this browser (${by()})`, ...(rate ? [`${rate.toFixed(0)} images a second`] : [])].join(" · ");
  $("picture").dataset.drawn = shown.stage;
}

async function drawRung(now, steps) {
  const { image, milliseconds } = await engine.draw(steps, wished(), wish.class, wish.guidance);
  shown.rungs.set(steps, now);
  showRung(steps, image, milliseconds);
}

async function drawClass(plain, k, steps) {
  const { image } = await engine.draw(steps, wished(), k, wish.guidance);
  shown.classes.set(k, plain);
  paint(document.querySelector(`[data-class="${k}"]`), image, SMALL);
}

let working = null; // the engine that draws
async function work() {
  if (!engine || working === engine) return;
  const mine = (working = engine);
  const failed = await drawAll(mine).then(() => null, (error) => error);
  if (working !== mine) return; // another engine was chosen meanwhile
  working = null;
  if (failed) await fail(failed);
}

async function drawAll(mine) {
  let quiet = false;
  while (engine === mine) {
    if (playing) await new Promise(requestAnimationFrame).then(sweep);
    quiet = !playing && performance.now() - touched >= QUIET;
    const job = next(quiet);
    if (job) await job();
    else if (!playing) break;
  }
  document.body.dataset.quiet = quiet;
  if (!quiet) setTimeout(work, QUIET);
}

async function fail(error) {
  play(false);
  if (engine.kind === "webgpu" && !(error instanceof Missing)) return choose("wasm", given(error));
  const loaded = ladder.rungs.find((rung) => engine.ready.has(rung.steps));
  if (!engine.ready.has(wish.steps)) set({ steps: loaded.steps });
  say(error.message, true);
}

const given = (error) => `The graphics card was given up (${error.message}): the processor computes.`;

// Controls

function set(changes) {
  Object.assign(wish, changes);
  touched = performance.now();
  document.body.dataset.quiet = false;
  show();
  work();
}

function show() {
  $("mix").value = wish.mix;
  for (const end of ["from", "to"]) {
    if (document.activeElement !== $(end)) $(end).value = wish[end];
    const picture = $(`${end}-picture`);
    if (picture.dataset.number !== String(wish[end])) {
      picture.dataset.number = wish[end];
      paint(picture, noiseOf(wish[end]).map((value) => value / 3), NOISE);
    }
  }
  for (const [name, value] of [["class", wish.class], ["steps", wish.steps]]) {
    for (const input of all(`input[name="${name}"]`)) input.checked = Number(input.value) === value;
  }
  if (ladder.most) {
    $("guidance").value = wish.guidance;
    $("weight").textContent = wish.guidance.toFixed(1);
  }
  figures();
}

// The measured distances, at the guidance nearest to the chosen one.
function figures() {
  const note = $("measured");
  if (!note) return;
  const away = (figure) => Math.abs(figure.guidance - wish.guidance);
  const any = ladder.rungs.flatMap((rung) => rung.figures).reduce((a, b) => (!a || away(b) < away(a) ? b : a), null);
  for (const { steps, figures: known } of ladder.rungs) {
    const found = known.find((figure) => figure.guidance === any.guidance); // not every student has been measured at each
    document.querySelector(`[data-figure="${steps}"]`).textContent = found ? `${found.metric} ${found.value.toFixed(0)}` : "";
  }
  const at = any && ladder.most ? ` at guidance ${any.guidance}` : "";
  const real = any?.real ? `; real images score ${any.real.toFixed(0)}` : "";
  note.textContent = any
    ? `${any.metric}: distance from real images, lower is better, measured in PyTorch of ${any.n.toLocaleString("en")} samples${at}${real}. The milliseconds are this browser's.`
    : "No distance of these students was measured. The milliseconds are this browser's.";
}

function play(on) {
  playing = on;
  $("play").setAttribute("aria-pressed", on);
  $("play").textContent = on ? "Stop" : "Play";
  sweptAt = performance.now();
  if (!on) touched = performance.now();
}

let sweptAt = 0, direction = 1;
function sweep() {
  const at = performance.now();
  let mix = wish.mix + (direction * (at - sweptAt)) / SWEEP;
  sweptAt = at;
  if (mix > 1 || mix < 0) direction = mix > 1 ? -1 : 1;
  mix = Math.min(1, Math.max(0, mix));
  if (playing) {
    wish.mix = mix;
    touched = at;
    $("mix").value = mix;
  }
}

// The address holds what is wished for: its link shows another the same.

function remember() {
  const told = { ...wish, engine: engine?.kind };
  history.replaceState(null, "", `#${new URLSearchParams(told)}`);
}

function recall() {
  const told = new URLSearchParams(location.hash.slice(1));
  const whole = (name, most, otherwise) => {
    const value = told.has(name) ? Number(told.get(name)) : NaN;
    return Number.isInteger(value) && value >= 0 && value <= most ? value : otherwise;
  };
  const within = (name, most, otherwise) => {
    const value = told.has(name) ? Number(told.get(name)) : NaN;
    return value >= 0 && value <= most ? value : otherwise;
  };
  const first = ladder.first, classes = Math.max(1, ladder.classes.length);
  const steps = whole("steps", 1e6, 0);
  Object.assign(wish, {
    from: whole("from", 999999999, first),
    to: whole("to", 999999999, (first + classes) % ladder.noise.count),
    mix: within("mix", 1, 0),
    class: whole("class", classes - 1, first % classes),
    guidance: within("guidance", ladder.most, ladder.shown),
    steps: ladder.rungs.some((rung) => rung.steps === steps) ? steps : ladder.rungs[0].steps,
  });
  return told.get("engine");
}

async function choose(kind, because = "") {
  engine?.worker.terminate();
  engine = working = null;
  shown.stage = "";
  shown.rungs.clear();
  shown.classes.clear();
  blank();
  for (const input of all('input[name="engine"]')) input.checked = input.value === kind;
  try {
    const made = await Engine.start(kind);
    await made.student(ladder.rungs[0].steps); // the least to load before there is a picture
    engine = made;
  } catch (error) {
    if (kind === "webgpu" && !(error instanceof Missing)) return choose("wasm", given(error));
    return say(error.message, true);
  }
  if (because) say(because);
  $("controls").inert = false;
  if ($("load")) Object.assign($("load"), { disabled: false, hidden: false });
  remember();
  set({});
}

async function loadAll() {
  $("load").disabled = true;
  const mine = engine;
  try {
    for (const { steps } of ladder.rungs) await mine.student(steps);
    $("load").hidden = true;
    set({});
  } catch (error) {
    $("load").disabled = false;
    if (mine === engine) await fail(error);
  }
}

function listen() {
  const another = () => ladder.noise.count + Math.floor(Math.random() * (1e9 - ladder.noise.count));
  $("controls").addEventListener("submit", (event) => event.preventDefault());
  $("mix").addEventListener("input", () => (play(false), set({ mix: Number($("mix").value) })));
  $("guidance")?.addEventListener("input", () => set({ guidance: Number($("guidance").value) }));
  for (const end of ["from", "to"]) {
    $(end).addEventListener("input", () => $(end).value !== "" && $(end).checkValidity() && set({ [end]: Number($(end).value) }));
    $(end).addEventListener("blur", show);
    $(`another-${end}`).addEventListener("click", () => (set({ [end]: another() }), remember()));
  }
  for (const name of ["class", "steps"]) {
    for (const input of all(`input[name="${name}"]`)) input.addEventListener("change", () => set({ [name]: Number(input.value) }));
  }
  for (const input of all('input[name="engine"]')) input.addEventListener("change", () => choose(input.value));
  $("play").addEventListener("click", () => {
    play(!playing);
    set({});
    if (!playing) remember();
  });
  $("load")?.addEventListener("click", loadAll);
  $("controls").addEventListener("change", remember);
}

// A graphics card that the runtime can wait for; one that is only imitated is slower than the processor.
async function graphics() {
  if (!("Suspending" in WebAssembly)) return { there: false, why: "this browser cannot compute on one here" };
  const adapter = await navigator.gpu?.requestAdapter().catch(() => null);
  if (!adapter) return { there: false, why: "this browser offers none" };
  return { there: true, fast: !(adapter.info?.isFallbackAdapter ?? adapter.isFallbackAdapter), why: "" };
}

async function begin() {
  const answer = await fetch("page.json").catch(() => null);
  if (!answer?.ok) throw new Error("page.json could not be loaded: put the whole folder on the server");
  ({ ladder, runtime } = await answer.json());
  blank();
  stored = new Float32Array(await get(ladder.noise, "the noises"));
  const asked = recall();
  const found = await graphics();
  document.querySelector('input[value="webgpu"]').disabled = !found.there;
  $("engine-note").textContent = found.why;
  show();
  listen();
  await choose(found.there && (asked ? asked === "webgpu" : found.fast) ? "webgpu" : "wasm");
}

begin().catch((error) => say(error.message, true));
