// The computing half of the page: onnxruntime-web, the students' weights, and one question after another.

let ort, provider;
const students = new Map();

const answers = {
  // The runtime's module and its WebAssembly, both checked by whoever sends them.
  async runtime({ module, wasm, engine }) {
    const address = URL.createObjectURL(new Blob([module], { type: "text/javascript" }));
    ort = await import(address);
    URL.revokeObjectURL(address);
    ort.env.logLevel = "error";
    ort.env.wasm.numThreads = 1;
    ort.env.wasm.wasmBinary = wasm;
    provider = engine;
  },

  // A student: its graph, packed weights, and the numbers of each of its steps.
  async student({ rung, graph, weights }) {
    const session = await ort.InferenceSession.create(new Uint8Array(graph), {
      executionProviders: [provider],
      externalData: [{ path: "weights", data: await unpacked(weights, rung.layout) }],
    });
    const times = rung.times.map((numbers) =>
      Object.fromEntries(
        Object.entries(numbers).map(([name, { dims, data }]) => [name, new ort.Tensor("float32", floats(data), dims)]),
      ),
    );
    students.set(rung.steps, { session, times, inputs: rung.inputs });
  },

  // An image [C, H, W] in [-1, 1] of a noise, every step in turn, and the milliseconds it took.
  async draw({ steps, noise, shape, label, guidance }) {
    const { session, times, inputs } = students.get(steps);
    const condition = {};
    if (inputs.includes("label")) condition.label = new ort.Tensor("int64", BigInt64Array.of(BigInt(label)), [1]);
    if (inputs.includes("guidance")) condition.guidance = new ort.Tensor("float32", Float32Array.of(guidance), [1]);
    let z = new ort.Tensor("float32", noise, [1, ...shape]);
    let image;
    const begun = performance.now();
    for (const numbers of times) {
      const found = await session.run({ z, ...condition, ...numbers });
      image = found.image;
      z = found.next;
    }
    return { image: image.data, milliseconds: performance.now() - begun };
  },
};

// What pdlab/web/packed.py packed: scales, low bytes, high bits; as the bytes of float32.
async function unpacked(packed, layout) {
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const content = await new Response(stream).arrayBuffer();
  const rows = layout.reduce((sum, [height]) => sum + height, 0);
  const total = layout.reduce((sum, [height, width]) => sum + height * width, 0);
  const scales = new Float32Array(content, 0, rows);
  const low = new Uint8Array(content, 4 * rows, total);
  const high = new Uint8Array(content, 4 * rows + total, total);
  const values = new Float32Array(total);
  let at = 0;
  let row = 0;
  for (const [height, width] of layout) {
    for (const end = row + height; row < end; row++) {
      for (const stop = at + width; at < stop; at++) values[at] = scales[row] * (low[at] + 256 * high[at] - 2047);
    }
  }
  return new Uint8Array(values.buffer);
}

function floats(text) {
  return new Float32Array(Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer);
}

let last = Promise.resolve();
onmessage = ({ data }) => {
  last = last.then(async () => {
    try {
      postMessage({ id: data.id, answer: await answers[data.kind](data) });
    } catch (error) {
      postMessage({ id: data.id, error: String(error?.message ?? error) });
    }
  });
};
