const SVG = "http://www.w3.org/2000/svg", BINS = 50, REFRESH_MS = 2000;

const engineer = {
  parts: [], timer: 0, low: 0, top: 1, limit: null, identity: {}, moved: false,

  async open() {
    await this.refresh();
    this.timer = setInterval(() => this.refresh(), REFRESH_MS);
    this.product();
  },
  leave() { clearInterval(this.timer); },

  async refresh() {
    const answer = await fetch("/history").catch(() => null);
    if (!answer || !answer.ok) return;
    this.parts = (await answer.json()).parts;
    const judged = this.parts.filter((part) => part[1] !== null);
    this.limit = judged.length ? judged[judged.length - 1][1] : null;
    const scores = this.parts.map((part) => part[0]).sort((a, b) => a - b);
    this.top = Math.max(1.5 * (this.limit || 0), scores[Math.floor(scores.length * 0.995)] || 0, 1e-6) * 1.05;
    // Scores that lie close together, far from 0, are shown over their own range.
    const least = Math.min(scores[0] ?? 0, this.limit || Infinity);
    const crowded = least > 0.5 * (this.limit || 0);
    if (crowded) this.top = Math.max(scores[Math.floor(scores.length * 0.995)], this.limit);
    this.low = crowded ? Math.max(0, least - 0.15 * (this.top - least) - 1e-4) : 0;
    if (crowded) this.top += 0.15 * (this.top - least) + 1e-4;
    if (!this.moved && this.limit) $("whatif").value = String(Math.round(1000 * this.share(this.limit)));
    this.draw();
  },

  draw() {
    const bins = Array.from({ length: BINS }, () => ({ OK: 0, UNDECIDED: 0, NG: 0, ERROR: 0 }));
    for (const [score, , verdict] of this.parts)
      bins[Math.min(BINS - 1, Math.max(0, Math.floor(BINS * this.share(score))))][verdict] += 1;
    const most = Math.max(1, ...bins.map((b) => b.OK + b.UNDECIDED + b.NG + b.ERROR));
    const nodes = [];
    bins.forEach((bin, i) => {
      let y = 255;
      for (const verdict of ["OK", "UNDECIDED", "NG", "ERROR"]) {
        const high = 245 * bin[verdict] / most;
        if (high) nodes.push(shape("rect", { x: i * 1000 / BINS + 1, y: y - high, width: 1000 / BINS - 2, height: high, "data-bar": verdict }));
        y -= high;
      }
    });
    const then = this.whatIf();
    if (this.limit) nodes.push(upright(1000 * this.share(this.limit), "now"));
    nodes.push(upright(1000 * this.share(then), "then"));
    $("histogram").replaceChildren(...nodes);
    text("histrange", `${this.parts.length} parts, scores ${figure(this.low)} to ${figure(this.top)}; solid line: limit ${figure(this.limit)}, dashed: what if`);
    $("axis").replaceChildren(...[0, 0.25, 0.5, 0.75, 1].map((share) => {
      const tick = document.createElement("span"); tick.textContent = (this.low + share * (this.top - this.low)).toPrecision(3); return tick;
    }));
    this.cost(then); this.closest();
  },

  // The accepted parts that came nearest to the limit: the first to look at when somebody doubts it.
  closest() {
    const passed = this.parts.filter((p) => p[2] === "OK").sort((a, b) => b[0] - a[0]).slice(0, 4);
    text("closest", passed.length ? "Accepted closest to the limit: " + passed.map((p) => `${p[3]} (${figure(p[0])})`).join(", ") : "");
  },

  share(score) { return (score - this.low) / (this.top - this.low); },
  whatIf() { return this.low + (this.top - this.low) * $("whatif").value / 1000; },

  cost(then) {
    text("whatifvalue", figure(then));
    if (!this.limit) return text("whatifcost", "No judged parts yet.");
    const rejected = this.parts.filter((p) => p[2] === "OK" && !(p[0] <= then));
    const passed = this.parts.filter((p) => p[2] === "NG" && p[0] <= then);
    text("whatifcost", `Of the last ${this.parts.length} parts: ${rejected.length} passed parts would be rejected, `
      + `${passed.length} rejected parts would pass.`);
    const chips = [...passed.map((p) => `would pass: ${p[3]}`), ...rejected.map((p) => `would be rejected: ${p[3]}`)];
    $("whatifparts").replaceChildren(...chips.slice(0, 12).map((label) => {
      const item = document.createElement("li"); item.textContent = label; return item;
    }));
  },

  takeSnapshot(all) {
    this.identity = all.identity;
    $("events").replaceChildren();
    all.events.forEach((event) => this.takeEvent(event));
    if (!$("engineer").hidden) this.product();
  },

  takeEvent(event) {
    const item = document.createElement("li"), kind = document.createElement("b");
    kind.textContent = event.kind.replaceAll("_", " "); kind.dataset.severity = event.severity;
    item.append(`${clock(event.t)} `, kind, ` ${event.text}`);
    $("events").prepend(item);
    while ($("events").childElementCount > 50) $("events").lastElementChild.remove();
  },

  async product() {
    const name = app.state.recipe || this.identity.recipe || "-";
    const answer = await fetch("/product/" + encodeURIComponent(name)).catch(() => null);
    if (!answer || !answer.ok) return;
    const product = await answer.json();
    this.identity = product.identity;
    const rows = [["recipe", name], ["version", app.state.version || "–"], ["describer", app.state.describer || "–"]];
    flatten("", product.recipe || {}, rows); flatten("calibration.", product.calibration || {}, rows);
    for (const key of ["recipe_sha", "bundle_sha", "config_sha", "epoch"])
      if (this.identity[key]) rows.push([key, this.identity[key]]);
    $("identity").replaceChildren(...rows.map(pair));
    this.gate(product.bundle);
    this.references(name, product.references, product.flags);
  },

  // One line per engine that inspects: what it was measured at when it passed the gate.
  gate(bundle) {
    if (!bundle || !Object.keys(bundle.facts).length) return;
    const facts = document.createElement("table"), table = document.createElement("table");
    facts.append(...["preset", "trained"].filter((key) => bundle.facts[key])
      .map((key) => pair([key, bundle.facts[key]])));
    const columns = [["token_cos_min", "least cosine"], ["pixel_auc_torch", "pixel AUC, PyTorch"], ["pixel_auc", "pixel AUC"],
      ["image_auc", "image AUC"], ["flips", "verdicts changed"], ["latency_ms", "ms"]];
    const measured = bundle.engines.map((engine) => ({ name: engine.name, precision: engine.figures.precision || "",
      ...engine.figures.parity, latency_ms: engine.figures.latency_ms })).filter((engine) => "pixel_auc" in engine);
    table.append(row(["engine", "precision", ...columns.map((column) => column[1])], true));
    for (const engine of measured) table.append(row([engine.name.replace(/^detector\.|\.onnx$/g, ""), engine.precision, ...columns.map(([key]) =>
      typeof engine[key] === "number" ? String(Number(engine[key].toPrecision(4))) : "–")]));
    $("gate").replaceChildren(facts, table);
  },

  references(name, files, flags) {
    text("refnote", files.length ? `${files.length} pictures. Flagging one leaves a note for the next enrolment.` : "None found.");
    $("references").replaceChildren(...files.map((file) => {
      const item = document.createElement("li"), image = document.createElement("img");
      const label = document.createElement("span"), button = document.createElement("button");
      image.src = `/reference/${encodeURIComponent(name)}/${encodeURIComponent(file)}`;
      image.alt = `Good reference ${file}`; image.loading = "lazy";
      label.className = "name"; label.textContent = file;
      const show = (flagged) => {
        button.setAttribute("aria-pressed", String(flagged));
        button.setAttribute("aria-label", `Flag ${file}`);
        button.textContent = flagged ? "⚑ Flagged" : "⚐ Flag";
      };
      show(Boolean(flags[file]));
      button.onclick = async () => {
        const flagged = button.getAttribute("aria-pressed") !== "true";
        const body = JSON.stringify({ recipe: name, file, why: flagged ? "flagged on the page" : "" });
        const done = await fetch("/flag", { method: "POST", headers: { "Content-Type": "application/json" }, body }).catch(() => null);
        if (done && done.ok) show(flagged);
      };
      item.append(image, label, button);
      return item;
    }));
  },
};

// A hash is shown by its beginning, as everybody compares them; all of it on hovering.
const HASH = /^[0-9a-f]{40,}$/;
function pair([name, value]) {
  const all = String(value), line = row([HASH.test(all) ? all.slice(0, 16) + "…" : all]);
  if (HASH.test(all)) line.firstChild.title = all;
  line.prepend(row([name], true).firstChild);
  return line;
}

// Told once already, or of interest to programs only.
const DULL = new Set(["schema_version", "name", "calibration.schema_version", "calibration.engine_sha", "calibration.precision"]);

function flatten(prefix, data, rows) {
  for (const [key, value] of Object.entries(data)) {
    if (value !== null && typeof value === "object" && !Array.isArray(value)) flatten(`${prefix}${key}.`, value, rows);
    else if (DULL.has(prefix + key) || (Array.isArray(value) && !value.length)) continue;
    else rows.push([prefix + key, Array.isArray(value) ? value.join(", ") : value === null ? "–" : value]);
  }
}

function shape(kind, attributes) {
  const node = document.createElementNS(SVG, kind);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

function upright(x, name) { return shape("line", { x1: x, x2: x, y1: 0, y2: 260, class: name }); }

$("whatif").oninput = () => { engineer.moved = true; engineer.draw(); };
wire();
listen();
