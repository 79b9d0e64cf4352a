// The roofline of impls/elvi/roofline.py, line by line, and the calculator that shows it. Models and machines are the
// page's own data; nothing is fetched. The page reads fully without this file.
const Roofline = (() => {
  const WORD = 2; // bytes of a weight or an activation
  const sum = values => values.reduce((a, b) => a + b, 0);

  const share = (count, ratio) => count ? Math.max(1, Math.floor(count * ratio + 0.5)) : 0;
  const squares = (length, window) => Math.floor(length / window) * window ** 2 + (length % window) ** 2;

  function gridOf(v, r) {
    const slices = r.images || Math.ceil(r.frames / v.temporal_patch), unit = v.patch * v.spatial_merge;
    const own = side => v.side ? Math.floor(v.side / v.patch) : Math.max(1, Math.floor(side / unit + 0.5)) * v.spatial_merge;
    const rows = own(r.height), columns = own(r.width), pool = r.images ? 1 : v.frame_pool;
    const high = Math.floor(rows / v.spatial_merge), wide = Math.floor(columns / v.spatial_merge);
    return { slices, rows, columns, merged: high * wide, tokens: Math.ceil(high / pool) * Math.ceil(wide / pool) };
  }

  function tower(v) {
    const d = v.hidden;
    return 3 * v.patch ** 2 * v.temporal_patch * d + v.layers * (4 * d * d + (v.gated ? 3 : 2) * d * v.intermediate);
  }
  function encode(v, g, r) {
    const d = v.hidden, patches = r.batch * g.slices * g.rows * g.columns, full = v.window ? v.full_layers.length : v.layers;
    const side = Math.floor((v.window || 0) / v.patch) || 1;
    const windowed = (v.layers - full) * squares(g.rows, side) * squares(g.columns, side);
    const pairs = r.batch * g.slices * (full * (g.rows * g.columns) ** 2 + windowed);
    const moved = 3 * v.patch ** 2 * v.temporal_patch + d + v.layers * (12 * d + 2 * v.intermediate);
    return [2 * patches * tower(v) + 4 * d * pairs, WORD * (tower(v) + patches * moved)];
  }

  function adapterPairs(m) {
    const merged = m.vision.spatial_merge ** 2 * m.vision.hidden;
    const widths = [merged, ...{ merger: [merged], mlp: [m.hidden], linear: [] }[m.vision.adapter], m.hidden];
    const once = widths.slice(1).map((out, i) => [widths[i], out]);
    return Array.from({ length: 1 + (m.vision.deepstack || 0) }, () => once).flat();
  }
  const adapter = m => sum(adapterPairs(m).map(([a, b]) => a * b));
  function adapt(m, g, r) {
    const rows = r.batch * g.slices * g.merged, moved = sum(adapterPairs(m).map(([a, b]) => a + b));
    return [2 * rows * adapter(m), WORD * (adapter(m) + rows * moved)];
  }

  const layerWeights = m => m.hidden * (2 * m.head_dim * (m.heads + m.kv_heads) + 3 * m.intermediate);
  const weights = m => m.layers * layerWeights(m) + m.hidden * m.vocab;
  const layerMoved = m => 4 * m.hidden + 4 * m.heads * m.head_dim + 2 * m.intermediate;
  const rowBytes = (m, r) => 2 * m.kv_heads * m.head_dim * r.kv_bits / 8;
  const parts = (m, r, kept, late) => [[r.layer, kept], [m.layers - r.layer, late]]
    .map(([count, rows]) => [count, rows + r.text, share(rows, r.cache_keep) + r.text]);

  function prefill(m, r, kept, late) {
    let flops = 2 * m.hidden * m.vocab, moved = m.hidden + m.vocab, cache = 0;
    for (const [layers, rows] of parts(m, r, kept, late)) {
      flops += layers * (2 * rows * layerWeights(m) + 4 * m.heads * m.head_dim * rows * (rows + 1) / 2);
      moved += layers * rows * layerMoved(m);
      cache += 2 * layers * rows * rowBytes(m, r);
    }
    return [r.batch * flops, WORD * (weights(m) + r.batch * moved) + r.batch * cache];
  }
  function decode(m, r, kept, late) {
    const steps = r.new - 1, moved = steps * (m.layers * layerMoved(m) + m.hidden + m.vocab);
    let flops = 2 * steps * weights(m), cache = 0;
    for (const [layers, , cached] of parts(m, r, kept, late)) {
      const read = layers * (steps * cached + steps * (steps + 1) / 2);
      flops += 4 * m.heads * m.head_dim * read;
      cache += (read + layers * steps) * rowBytes(m, r);
    }
    return [r.batch * flops, WORD * (steps * weights(m) + r.batch * moved) + r.batch * cache];
  }

  function stage(machine, name, [flops, bytes]) {
    const compute = flops / (machine.peak_tflops * 1e12), memory = bytes / (machine.bandwidth_gb_s * 1e9);
    const seconds = Math.max(compute, memory), bound = compute >= memory ? "compute" : "memory";
    return { name, flops, bytes, seconds, bound, intensity: bytes ? flops / bytes : 0 };
  }

  // What `elvi estimate --json` prints, of a model and a machine of the taxonomy and a request with every field.
  function estimate(m, machine, r) {
    const stages = [];
    let made = r.visual || 0;
    if (m.vision && r.visual == null && r.frames + r.images) {
      const g = gridOf(m.vision, r);
      made = g.slices * g.tokens;
      stages.push(stage(machine, "encode", encode(m.vision, g, r)), stage(machine, "adapter", adapt(m, g, r)));
    }
    const kept = share(made, r.keep), late = share(kept, r.layer_keep), steps = r.new - 1;
    stages.push(stage(machine, "prefill", prefill(m, r, kept, late)));
    const last = stage(machine, "decode", decode(m, r, kept, late)), first = sum(stages.map(s => s.seconds));
    const rows = sum(parts(m, r, kept, late).map(([layers, , cached]) => layers * (cached + steps)));
    const kv = r.batch * rows * rowBytes(m, r);
    const held = kv + WORD * (weights(m) + (m.vision ? tower(m.vision) + adapter(m) : 0));
    return {
      stages: [...stages, last], ridge: machine.peak_tflops * 1e3 / machine.bandwidth_gb_s,
      visual: { made, entering: kept, late }, ttft_s: first, tpot_s: steps ? last.seconds / steps : null,
      total_s: first + last.seconds, kv_bytes_per_token: m.layers * rowBytes(m, r), kv_bytes: kv, held_bytes: held,
      fits: machine.memory_gb == null ? null : held <= machine.memory_gb * 1e9,
    };
  }

  // ---- what the page says of it; `words` of tools/elvi_survey/site/roofline.py says the same ----
  const digits = v => v >= 100 ? Math.floor(v + 0.5).toLocaleString("en-US") : v.toFixed(v >= 10 ? 1 : 2);
  const time = s => s >= 1 ? `${digits(s)} s` : `${digits(s * 1e3)} ms`;
  const scaled = (v, unit) => {
    const [scale, prefix] = [[1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]].find(([s]) => v >= s) || [1, ""];
    return `${digits(v / scale)} ${prefix}${unit}`;
  };
  function words(found, machine, r) {
    const count = v => v.toLocaleString("en-US"), { made, entering, late } = found.visual, said = {
      ttft: time(found.ttft_s), tpot: found.tpot_s == null ? "–" : time(found.tpot_s), total: time(found.total_s),
      kv: scaled(found.kv_bytes, "B"), token: `${count(found.kv_bytes_per_token)} B per token`, ridge: `ridge ${digits(found.ridge)}`,
      batch: r.batch === 1 ? "one request" : `${count(r.batch)} requests at once`,
      visual: `${count(entering)} of ${count(made)} visual tokens` + (late === entering ? "" : `, ${count(late)} from layer ${r.layer}`),
      held: `Weights and cache take ${scaled(found.held_bytes, "B")}` + (machine.memory_gb == null ? "." : ` of ${count(machine.memory_gb)} GB` + (found.fits ? "." : ": this machine cannot hold them.")),
    };
    for (const s of found.stages) {
      said[`flops-${s.name}`] = scaled(s.flops, "FLOP"); said[`bytes-${s.name}`] = scaled(s.bytes, "B");
      said[`intensity-${s.name}`] = digits(s.intensity); said[`time-${s.name}`] = time(s.seconds);
      said[`bound-${s.name}`] = s.flops ? s.bound : "–"; said[`part-${s.name}`] = time(s.seconds);
    }
    return said;
  }

  const X = intensity => 44 + (Math.log10(Math.min(Math.max(intensity, 0.1), 1e5)) + 1) / 6 * 310;
  const Y = tflops => 226 - (Math.log10(Math.max(tflops, 0.1)) + 1) / 5 * 204;

  function start(form) {
    const $ = selector => document.querySelector(selector), fields = form.elements, notice = $("#roofline-notice");
    const { models, machines } = JSON.parse($("#roofline-data").textContent);
    const inputs = [...form.querySelectorAll("select,input")], initial = Object.fromEntries(inputs.map(i => [i.name, i.value]));
    const number = name => +fields[name].value;
    const request = m => ({
      frames: number("frames"), images: 0, height: number("side"), width: number("side"), visual: null, text: number("text"),
      new: number("new"), batch: number("batch"), kv_bits: number("kv_bits"), keep: number("keep") / 100,
      layer: number("layer"), layer_keep: number("layer_keep") / 100, cache_keep: number("cache_keep") / 100,
    });
    const paint = () => {
      const m = models[fields.model.value], machine = machines[fields.hardware.value];
      fields.layer.max = m.layers; // the browser clamps the value
      const r = request(m), found = estimate(m, machine, r);
      fields.side.disabled = Boolean(m.vision.side);
      for (const o of form.querySelectorAll("output")) o.textContent = (o.dataset.for === "side" && m.vision.side || fields[o.dataset.for].value) + o.dataset.unit;
      for (const [key, text] of Object.entries(words(found, machine, r))) $(`[data-out="${key}"]`).textContent = text;
      $("#roof").setAttribute("d", `M${X(0.1)},${Y(0.1 * machine.bandwidth_gb_s / 1e3)}L${X(found.ridge)},${Y(machine.peak_tflops)}H${X(1e5)}`);
      $("#ridge").setAttribute("transform", `translate(${X(found.ridge)},${Y(machine.peak_tflops)})`);
      for (const s of found.stages) {
        const mark = $(`#at-${s.name}`), reached = Math.min(machine.peak_tflops, s.intensity * machine.bandwidth_gb_s / 1e3);
        mark.setAttribute("transform", `translate(${X(s.intensity)},${Y(reached)})`); mark.toggleAttribute("hidden", !s.flops);
        $(`.split [data-part="${s.name}"]`).style.flexGrow = s.seconds / found.total_s;
      }
    };
    const read = () => {
      const asked = new URLSearchParams(location.search), lost = [];
      for (const input of inputs) input.value = initial[input.name];
      for (const [name, value] of asked) {
        if (name === "theme") continue;
        const input = fields[name];
        if (input) input.value = value; // a browser clamps a range, and empties a choice it does not know
        if (!input || input.value !== value) lost.push(`${name}=${value}`);
        if (input && !input.value) input.value = initial[name];
      }
      notice.hidden = !lost.length;
      notice.textContent = lost.length ? `Not as this link asks: ${lost.join(", ")}.` : "";
      paint();
    };
    form.onsubmit = event => event.preventDefault();
    form.oninput = () => {
      const changed = inputs.filter(i => i.value !== initial[i.name]).map(i => [i.name, i.value]);
      history.replaceState(null, "", changed.length ? "?" + new URLSearchParams(changed) : location.pathname);
      notice.hidden = true; paint();
    };
    addEventListener("popstate", read); read();
  }

  const form = typeof document === "object" && document.getElementById("roofline");
  if (form) start(form);
  return { estimate, words };
})();
