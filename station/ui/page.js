const $ = (id) => document.getElementById(id);
const SILENT_MS = 800;        // without a message from the page's server: banner
const PICTURE_MS = 200;       // a fast line changes the picture at most five times a second
const FILM = 24, SPARK = 120;
const NEAR = 0.2, KNOWN = 20; // of the way from the limit back to the median of so many accepted parts
const ICONS = { OK: "✔", NG: "✖", UNDECIDED: "?", ERROR: "!" };
const REASONS = {
  score: "Score above the limit", deadline: "No answer in time", queue_full: "Too many parts waiting",
  recipe: "Recipe missing or still learning", implausible_frame: "Picture does not look like this part",
  camera: "No usable picture", stale_frame: "Camera repeats its picture", infer: "Inspection failed",
  not_finite: "Inspection gave no number", restart: "Station restarted", config: "Configuration does not fit",
  late: "Verdict came too late",
};
const view = { heat: true, opacity: 0.5, boxes: true };
const app = { last: null, scene: null, rejects: [], spark: [], passed: [], state: { alive: false }, heard: 0, seq: 0,
  loading: false, wanted: null, shownAt: 0, down: false, detail: null, detailScene: null, recipe: null };

function text(id, value) { const node = $(id); if (node.textContent !== value) node.textContent = value; }
function figure(value) { return value === null || value === undefined ? "–" : value.toPrecision(3); }
function clock(ms) { return new Date(ms).toLocaleTimeString([], { hour12: false }); }
function accepted(part) { return part.verdict === "OK" && !part.late; }
// A late OK is no OK: nothing acts on it.
function wordOf(part) { return part.verdict === "OK" && part.late ? "NG" : part.verdict; }
// An accepted part whose score comes close to the limit: worth a look, nothing more.
function near(part) {
  if (!accepted(part) || app.passed.length < KNOWN) return false;
  const usual = [...app.passed].sort((a, b) => a - b)[Math.floor(app.passed.length / 2)];
  return part.score > part.threshold - NEAR * (part.threshold - usual);
}
function reasonOf(part) {
  if (part.late) return REASONS.late;
  if (part.verdict === "OK") return near(part) ? "Within the limit, but close to it" : "Score within the limit";
  return REASONS[part.reason] || part.reason;
}

// ---- the last part ----------------------------------------------------------------------------
function showVerdict(part) {
  const box = $("verdict");
  box.dataset.part = part.part;
  box.dataset.delay = String(Math.round(Date.now() - part.done));
  showWord(part);
  box.classList.remove("fresh"); void box.offsetWidth; box.classList.add("fresh");
  text("reason", reasonOf(part));
  text("part", part.part + (part.attempt > 1 ? ` · attempt ${part.attempt}` : ""));
  showScore(part); showWords(part);
}

// Without a heartbeat nothing passes: an OK that still stands there must not be read as one.
function showWord(part) {
  const word = app.down ? "NONE" : wordOf(part);
  $("verdict").dataset.verdict = word;
  text("icon", app.down ? "!" : ICONS[word]); text("word", app.down ? "–" : word);
  text("todo", app.down ? "REJECT ALL" : accepted(part) ? "PASS" : "REJECT");
}

function showScore(part) {
  const judged = part.score !== null && part.threshold;
  const over = judged && !(part.score <= part.threshold);
  // The limit stands in the middle; a score of twice the limit fills the bar.
  $("fill").style.width = judged ? Math.min(100, 50 * part.score / part.threshold) + "%" : "0";
  $("fill").dataset.over = String(Boolean(over));
  $("fill").dataset.near = String(Boolean(near(part)));
  text("score", figure(part.score)); text("threshold", figure(part.threshold));
  $("scorebar").setAttribute("aria-label",
    judged ? `Score ${figure(part.score)}, limit ${figure(part.threshold)}` : "No score");
}

function showWords(part) {
  const words = part.words;
  text("words", words ? brief(words.sentence) : part.described ? "…" : accepted(part) ? "Nothing to describe." : "No description.");
  text("wordsource", !words ? "" : (words.source === "llm" ? "by the language model" : "from the heat map")
    + (words.contradiction ? ` · contradicts the map: ${words.contradiction}` : ""));
}

// The paper's opening says only what the operator knows; the opened reject shows it whole.
function brief(sentence) { return sentence.replace(/^This is an? (picture|photo|image) of [^.]*\. (?=\S)/, ""); }

async function showPicture(part) {
  app.wanted = part;
  if (app.loading) return;
  app.loading = true;
  while (app.wanted) {
    const next = app.wanted;
    app.wanted = null;
    const wait = PICTURE_MS - (performance.now() - app.shownAt);
    if (wait > 0) await new Promise((done) => setTimeout(done, wait));
    const scene = await loadScene(next);
    app.shownAt = performance.now();
    app.scene = scene;
    $("nopicture").hidden = Boolean(scene);
    text("nopicture", "No picture of this part");
    text("caption", scene ? `${next.part} · ${next.verdict} · ${clock(next.t)}` : "");
    $("picture").dataset.part = next.part;
    $("picture").setAttribute("aria-label", `Part ${next.part}, ${next.verdict}, `
      + (next.region_count ? `${next.region_count} suspicious region${next.region_count > 1 ? "s" : ""}` : "no suspicious region"));
    redraw();
  }
  app.loading = false;
}

function redraw() {
  drawScene($("picture"), app.scene, view);
  why.draw();
  if ($("detail").open) drawScene($("detailpicture"), app.detailScene, view);
}

// ---- rejects ----------------------------------------------------------------------------------
function filmItem(part) {
  const item = document.createElement("li"), button = document.createElement("button");
  button.dataset.verdict = wordOf(part);
  button.dataset.trigger = part.trigger;
  button.setAttribute("aria-label", `Reject ${part.part}, ${part.verdict}, ${reasonOf(part)}, ${clock(part.t)}`);
  if (part.image) {
    const image = document.createElement("img");
    image.alt = ""; image.src = pictureUrl(part.image + ":thumb");
    image.onerror = () => image.replaceWith(emptyThumb(part));
    button.append(image);
  } else button.append(emptyThumb(part));
  const label = document.createElement("span");
  label.className = "label"; label.textContent = `${ICONS[wordOf(part)]} ${part.part}`;
  button.append(label);
  button.onclick = () => openDetail(part.trigger);
  item.append(button);
  return item;
}

function emptyThumb(part) {
  const none = document.createElement("span");
  none.className = "none"; none.textContent = ICONS[wordOf(part)];
  return none;
}

function addReject(part) {
  app.rejects.unshift(part);
  $("film").prepend(filmItem(part));
  while (app.rejects.length > FILM) { app.rejects.pop(); $("film").lastElementChild.remove(); }
  $("nofilm").hidden = true;
}

async function openDetail(trigger) {
  const part = app.rejects.find((reject) => reject.trigger === trigger);
  if (!part) return;
  app.detail = trigger; app.detailScene = null;
  const at = app.rejects.indexOf(part);
  $("newer").disabled = at === 0; $("older").disabled = at === app.rejects.length - 1;
  text("detailtitle", `${ICONS[wordOf(part)]} ${wordOf(part)} · ${part.part}`);
  text("detailcaption", `${reasonOf(part)} · score ${figure(part.score)}, limit ${figure(part.threshold)} · ${clock(part.t)}`);
  text("detailwords", part.words ? part.words.sentence : "No description yet.");
  regionTable(part);
  $("goodfigure").hidden = true;
  if (!$("detail").open) $("detail").showModal();
  redraw();
  const scene = await loadScene(part);
  if (app.detail !== trigger) return;
  app.detailScene = scene;
  $("detailpicture").setAttribute("aria-label", `Rejected part ${part.part}`);
  redraw();
  showNearest(part, trigger);
}

async function showNearest(part, trigger) {
  const found = await nearestGood(part);
  if (!found || app.detail !== trigger) return;
  $("good").src = found.image.src;
  $("good").alt = `Good reference ${found.file}`;
  text("goodname", found.file);
  $("goodfigure").hidden = false;
}

function row(cells, head) {
  const line = document.createElement("tr");
  for (const cell of cells) {
    const node = document.createElement(head ? "th" : "td");
    node.textContent = cell; line.append(node);
  }
  return line;
}

function regionTable(part) {
  const rows = part.regions.slice(0, 6).map(([x, y, w, h, peak], i) =>
    row([String(i + 1), `x ${x}, y ${y}`, `${w} × ${h} px`, figure(peak)]));
  if (rows.length) rows.unshift(row(["Region", "Place", "Size", "Peak"], true));
  if (part.region_count > 6) rows.push(row([`${part.region_count} regions in all`, "", "", ""]));
  $("regions").replaceChildren(...rows);
}

function step(by) {
  const at = app.rejects.findIndex((reject) => reject.trigger === app.detail) + by;
  if (app.rejects[at]) openDetail(app.rejects[at].trigger);
}

// ---- numbers ----------------------------------------------------------------------------------
function bars(id, counts, names) {
  const entries = Object.entries(counts).slice(0, 4), most = Math.max(1, ...entries.map((e) => e[1]));
  $(id).replaceChildren(...(entries.length ? entries : [["none", 0]]).map(([name, count]) => {
    const item = document.createElement("li"), label = document.createElement("span");
    const bar = document.createElement("span"), fill = document.createElement("i"), value = document.createElement("span");
    label.textContent = (names && names[name]) || name; label.title = label.textContent;
    bar.className = "bar"; fill.style.width = (100 * count / most) + "%"; bar.append(fill);
    value.textContent = String(count);
    item.append(label, bar, value);
    return item;
  }));
}

function showShift(shift) {
  text("yield", shift.yield === null ? "–" : (100 * shift.yield).toFixed(1) + " %");
  text("counts", `${shift.parts} parts · ${shift.rejects} rejects`);
  text("since", shift.counted_from ? "since " + clock(shift.counted_from).slice(0, 5) : "");
  bars("reasons", shift.reasons, REASONS);
  bars("categories", shift.categories);
}

function showSpark() {
  const values = app.spark;
  if (!values.length) return;
  const sorted = [...values].sort((a, b) => a - b), top = Math.max(1, sorted[sorted.length - 1]);
  text("latency", `${Math.round(sorted[Math.floor(sorted.length / 2)])} ms`);
  const svg = $("spark");
  svg.setAttribute("viewBox", `0 0 ${SPARK - 1} 100`);
  const path = values.map((v, i) => `${i ? "L" : "M"}${i},${(98 - 94 * v / top).toFixed(1)}`).join("");
  const line = svg.firstElementChild || svg.appendChild(document.createElementNS("http://www.w3.org/2000/svg", "path"));
  line.setAttribute("d", path);
  svg.setAttribute("aria-label", `Time of the last ${values.length} parts, at most ${Math.round(top)} ms`);
}

// ---- state ------------------------------------------------------------------------------------
function showState(state) {
  app.state = state;
  const up = state.alive, ready = up && state.ready;
  $("ready").dataset.state = ready ? "ready" : "down";
  text("ready", !up ? "NO CONTACT" : ready ? "READY" : "NOT READY");
  text("faults", up && state.faults.length ? state.faults.join(", ") : "");
  if (state.known) {
    text("station", `${state.line} / ${state.station}`);
    text("recipe", state.recipe || "no recipe");
    $("simulated").hidden = !state.simulated;
  }
  showBanner();
}

function showBanner() {
  const silent = performance.now() - app.heard > SILENT_MS, down = silent || !app.state.alive;
  const banner = $("banner"), was = banner.hidden;
  const why = silent ? "NO CONTACT: this page gets no news. Treat every part as rejected."
    : "NO HEARTBEAT from the station. Treat every part as rejected.";
  if (down) { text("banner", why); $("ready").dataset.state = "down"; text("ready", "NO CONTACT"); }
  banner.hidden = !down;
  if (app.down !== down) {
    app.down = down;
    if (app.last) showWord(app.last);
  }
  if (was === down) requestAnimationFrame(redraw);
}

// ---- news -------------------------------------------------------------------------------------
function takeResult(part) {
  if (part.epoch === app.epoch && part.seq <= app.seq) return;   // already in the snapshot
  app.seq = part.seq; app.epoch = part.epoch;
  app.last = part;
  app.spark.push(part.ms);
  if (app.spark.length > SPARK) app.spark.shift();
  if (accepted(part)) app.passed.push(part.score);
  if (app.passed.length > SPARK) app.passed.shift();
  showVerdict(part); showPicture(part); showShift(part.shift); showSpark();
  if (!accepted(part)) { addReject(part); why.show(part); } else why.place();
}

function takeWords(words) {
  if (app.last && app.last.trigger === words.trigger) { app.last.words = words; showWords(app.last); }
  const reject = app.rejects.find((part) => part.trigger === words.trigger);
  if (reject) { reject.words = words; why.words(reject); why.place(); }
  if (app.detail === words.trigger && $("detail").open) text("detailwords", words.sentence);
  showShift(words.shift);
}

function takeSnapshot(all) {
  app.rejects = []; $("film").replaceChildren();
  all.rejects.slice(-FILM).forEach(addReject);
  $("nofilm").hidden = app.rejects.length > 0;
  app.spark = all.spark.slice(-SPARK); app.passed = all.passed;
  app.last = all.last; app.seq = all.last ? all.last.seq : 0; app.epoch = all.last ? all.last.epoch : null;
  if (all.last) { showVerdict(all.last); showPicture(all.last); }
  if (app.rejects.length) why.show(app.rejects[0]); else why.forget();
  showShift(all.shift); showSpark(); showState(all.state);
  engineer.takeSnapshot(all);
}

function listen() {
  const source = new EventSource("/events");
  const on = (name, take) => source.addEventListener(name, (message) => {
    app.heard = performance.now();
    take(JSON.parse(message.data));
  });
  on("snapshot", takeSnapshot); on("result", takeResult); on("desc", takeWords);
  on("state", showState); on("event", (event) => engineer.takeEvent(event));
  on("resync", async () => {
    const answer = await fetch("/state").catch(() => null);
    if (answer && answer.ok) takeSnapshot(await answer.json());
  });
  source.onerror = () => {
    // The browser comes back by itself unless the server refused; then try again slowly.
    if (source.readyState === EventSource.CLOSED) { source.close(); setTimeout(listen, 1000); }
  };
}

// ---- controls ---------------------------------------------------------------------------------
function selectTab(name) {
  for (const tab of ["line", "engineer"]) {
    $(tab).hidden = tab !== name;
    $("tab-" + tab).setAttribute("aria-selected", String(tab === name));
    $("tab-" + tab).tabIndex = tab === name ? 0 : -1;
  }
  if (name === "engineer") engineer.open(); else engineer.leave();
  redraw();
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  try { localStorage.setItem("theme", theme); } catch { /* a private window keeps nothing */ }
}

function wire() {
  let theme = null;
  try { theme = localStorage.getItem("theme"); } catch { /* a private window keeps nothing */ }
  setTheme(theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"));
  $("theme").onclick = () => setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
  $("heat").onchange = () => { view.heat = $("heat").checked; redraw(); };
  $("boxes").onchange = () => { view.boxes = $("boxes").checked; redraw(); };
  $("opacity").oninput = () => { view.opacity = $("opacity").value / 100; redraw(); };
  $("tab-line").onclick = () => selectTab("line");
  $("tab-engineer").onclick = () => selectTab("engineer");
  document.querySelector("[role=tablist]").onkeydown = (event) => {
    if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
    const other = $("engineer").hidden ? "engineer" : "line";
    selectTab(other); $("tab-" + other).focus();
  };
  $("close").onclick = () => $("detail").close();
  $("detail").onclose = () => { app.detail = null; app.detailScene = null; };
  $("newer").onclick = () => step(-1);
  $("older").onclick = () => step(1);
  $("detail").onkeydown = (event) => {
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  };
  new ResizeObserver(redraw).observe(document.querySelector(".stage"));
  setInterval(showBanner, 100);
  setInterval(() => text("clock", new Date().toLocaleTimeString([], { hour12: false })), 500);
}
