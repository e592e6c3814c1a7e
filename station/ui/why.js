// Why the last reject was rejected, without a click: the spot enlarged, and the same place of the
// nearest good reference below it. It stays until the next reject.
const CROP_MIN = 0.14, CROP_AROUND = 2.2;   // of the picture's longer side; of the region's

const why = {
  part: null, scene: null, good: null, wanted: null, loading: false,

  async show(part) {
    this.wanted = part;
    if (this.loading) return;
    this.loading = true;
    while (this.wanted) {
      const next = this.wanted;
      this.wanted = null;
      await this.load(next);
      await new Promise((done) => setTimeout(done, PICTURE_MS));
    }
    this.loading = false;
  },

  async load(part) {
    this.name(part);
    const scene = await loadScene(part);
    const good = scene && part.regions.length ? await nearestGood(part) : null;
    if (this.part !== part) return;
    this.scene = scene; this.good = good;
    $("whyspotfigure").hidden = !scene;
    $("whygoodfigure").hidden = !good;
    $("whyspot").setAttribute("aria-label", part.regions.length ? `Enlarged suspicious spot of part ${part.part}` : `Part ${part.part}`);
    if (good) $("whygood").setAttribute("aria-label", `The same place of good reference ${good.file}`);
    $("whyspot").dataset.part = part.part;
    this.draw();
  },

  name(part) {
    this.part = part; this.scene = this.good = null;
    const many = part.region_count > 1 ? ` (the worst of ${part.region_count})` : "";
    text("whyspottext", part.regions.length ? `The spot${many}` : "Its picture");
    $("why").hidden = false;
    this.words(part); this.place();
  },

  words(part) {
    if (part === this.part) text("whywords", part.words ? brief(part.words.sentence) : reasonOf(part));
  },

  // Whether the panel speaks of the part that is on the screen, or of an earlier one.
  place() {
    if (!this.part) return;
    const current = app.last && app.last.trigger === this.part.trigger;
    $("why").dataset.current = String(Boolean(current));
    text("whytitle", current ? "Why it is rejected" : "Last reject");
    text("whypart", current ? reasonOf(this.part) : `${this.part.part} · ${clock(this.part.t)}`);
    $("whywords").hidden = Boolean(current);
  },

  draw() {
    const spot = this.scene && cleared($("whyspot"));
    if (!spot) return;
    const from = cropOf(this.part, this.scene.image, spot.width / spot.height);
    drawPart(spot, this.scene, { heat: false, boxes: true, noBoxes: true }, from, fit(spot, from));
    const same = this.good && cleared($("whygood"));
    if (!same) return;
    const { image, region } = this.good, all = this.scene.image;
    const origin = region || { x: 0, y: 0, w: all.naturalWidth, h: all.naturalHeight };
    const across = image.naturalWidth / origin.w, down = image.naturalHeight / origin.h, at = fit(same, from);
    same.context.drawImage(image, (from.x - origin.x) * across, (from.y - origin.y) * down,
      from.w * across, from.h * down, at.x, at.y, at.w, at.h);
  },

  forget() { this.part = this.scene = this.good = null; $("why").hidden = true; },
};

// A rectangle of this aspect around the region with the highest peak, inside the picture; without
// a region all of it.
function cropOf(part, image, aspect) {
  const wide = image.naturalWidth, high = image.naturalHeight;
  if (!part.regions.length) return { x: 0, y: 0, w: wide, h: high };
  const [x, y, w, h] = part.regions.reduce((a, b) => (b[4] > a[4] ? b : a));
  const side = Math.max(CROP_AROUND * Math.max(w / aspect, h), CROP_MIN * Math.max(wide, high));
  const cut = { w: Math.min(wide, side * aspect), h: Math.min(high, side) };
  const within = (centre, size, all) => Math.max(0, Math.min(all - size, centre - size / 2));
  return { ...cut, x: within(x + w / 2, cut.w, wide), y: within(y + h / 2, cut.h, high) };
}

function fit(on, from) { return contain(on.width, on.height, from.w, from.h); }

// {image, file, region} of the good reference most like a part, or null.
async function nearestGood(part) {
  if (!part.image || !part.recipe) return null;
  const answer = await fetch(`/nearest/${encodeURIComponent(part.recipe)}/${part.image}`).catch(() => null);
  const found = answer && answer.ok ? await answer.json() : null;
  if (!found || !found.file) return null;
  const image = await loadImage(`/reference/${encodeURIComponent(part.recipe)}/${encodeURIComponent(found.file)}`);
  return image && { image, file: found.file, region: found.region };
}
