"use strict";
// The anomaly map comes as grey: 128 is the alarm level. Below half of it nothing is drawn, so
// that the part itself stays visible; colours go yellow, red, magenta.
const HEAT_FROM = 72, HEAT_FULL = 150, ALARM = 128;

function heatColour(grey) {
  if (grey <= HEAT_FROM) return [0, 0, 0, 0];
  const t = Math.min(1, (grey - HEAT_FROM) / (HEAT_FULL - HEAT_FROM));
  const hot = Math.max(0, Math.min(1, (grey - 128) / 127));
  return [255 - 45 * hot, Math.round(210 * (1 - t)), Math.round(110 * hot), Math.round(255 * (0.25 + 0.75 * t))];
}

// A grey map image to {canvas, outline}: coloured and transparent, and where it crosses the alarm
// level, both in the map's own pixels.
function heatOf(map) {
  const canvas = document.createElement("canvas");
  canvas.width = map.naturalWidth;
  canvas.height = map.naturalHeight;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(map, 0, 0);
  const pixels = context.getImageData(0, 0, canvas.width, canvas.height);
  const outline = outlineOf(pixels);
  for (let i = 0; i < pixels.data.length; i += 4) {
    const [r, g, b, a] = heatColour(pixels.data[i]);
    pixels.data[i] = r; pixels.data[i + 1] = g; pixels.data[i + 2] = b; pixels.data[i + 3] = a;
  }
  context.putImageData(pixels, 0, 0);
  return { canvas, outline };
}

// The line at which a grey picture crosses the alarm level (marching squares, linear between
// pixel centres); a region that touches the rim of the picture stays open there.
function outlineOf({ data, width, height }) {
  const path = new Path2D();
  const at = (x, y) => data[4 * (y * width + x)] - ALARM + 0.5;
  const cut = (a, b) => a / (a - b);
  for (let y = 0; y + 1 < height; y += 1) {
    for (let x = 0; x + 1 < width; x += 1) {
      const a = at(x, y), b = at(x + 1, y), c = at(x + 1, y + 1), d = at(x, y + 1);
      if ((a > 0) === (b > 0) && (b > 0) === (c > 0) && (c > 0) === (d > 0)) continue;
      const ends = [];
      if ((a > 0) !== (b > 0)) ends.push([x + cut(a, b), y]);
      if ((b > 0) !== (c > 0)) ends.push([x + 1, y + cut(b, c)]);
      if ((d > 0) !== (c > 0)) ends.push([x + cut(d, c), y + 1]);
      if ((a > 0) !== (d > 0)) ends.push([x, y + cut(a, d)]);
      for (let i = 0; i + 1 < ends.length; i += 2) {
        path.moveTo(ends[i][0] + 0.5, ends[i][1] + 0.5);
        path.lineTo(ends[i + 1][0] + 0.5, ends[i + 1][1] + 0.5);
      }
    }
  }
  return path;
}

// Where a picture of w x h lies inside a box, whole and centred.
function contain(width, height, w, h) {
  const scale = Math.min(width / w, height / h);
  return { x: (width - w * scale) / 2, y: (height - h * scale) / 2, w: w * scale, h: h * scale, scale };
}

// A context of the canvas at the screen's own resolution, cleared; null while it is not visible.
function cleared(canvas) {
  const ratio = window.devicePixelRatio || 1;
  const width = Math.round(canvas.clientWidth * ratio), height = Math.round(canvas.clientHeight * ratio);
  if (!width || !height) return null;
  if (canvas.width !== width || canvas.height !== height) { canvas.width = width; canvas.height = height; }
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, width, height);
  return { context, width, height, ratio };
}

// scene: {image, heat, outline, regions}; view: {heat: bool, opacity: 0..1, boxes: bool}
function drawScene(canvas, scene, view) {
  const on = cleared(canvas);
  if (!on || !scene || !scene.image) return;
  const { naturalWidth: wide, naturalHeight: high } = scene.image;
  drawPart(on, scene, view, { x: 0, y: 0, w: wide, h: high }, contain(on.width, on.height, wide, high));
}

// The rectangle `from` of a part's picture, with heat and outlines, into `place` of a canvas.
function drawPart({ context, ratio }, scene, view, from, place) {
  context.save();
  context.beginPath(); context.rect(place.x, place.y, place.w, place.h); context.clip();
  context.drawImage(scene.image, from.x, from.y, from.w, from.h, place.x, place.y, place.w, place.h);
  const scale = place.w / from.w;
  const left = place.x - from.x * scale, top = place.y - from.y * scale;
  if (view.heat && scene.heat) {
    context.globalAlpha = view.opacity;
    context.drawImage(scene.heat, left, top, scene.image.naturalWidth * scale, scene.image.naturalHeight * scale);
    context.globalAlpha = 1;
  }
  if (view.boxes) {
    if (scene.outline) drawOutline(context, scene, left, top, scale, ratio);
    if (!view.noBoxes) drawRegions(context, boxesOf(scene), { x: left, y: top, scale }, ratio);
  }
  context.restore();
}

// Dark under light: visible on any part.
const STROKES = [["#000", 4.5], ["#fff", 2]];

function drawOutline(context, scene, left, top, scale, ratio) {
  const zoom = scale * scene.image.naturalWidth / scene.heat.width;
  context.save();
  context.translate(left, top); context.scale(zoom, zoom);
  context.lineJoin = context.lineCap = "round";
  for (const [colour, thick] of STROKES) {
    context.strokeStyle = colour; context.lineWidth = thick * ratio / zoom;
    context.stroke(scene.outline);
  }
  context.restore();
}

// An outline is enough for what is large; small ones get a box to be found by, all without a map.
const SMALL = 0.06;
function boxesOf({ image, outline, regions }) {
  const small = SMALL * Math.max(image.naturalWidth, image.naturalHeight);
  return (regions || []).filter(([, , w, h]) => !outline || Math.max(w, h) < small);
}

function drawRegions(context, regions, place, ratio) {
  const gap = 6 * ratio;   // a box stands a little outside the outline it belongs to
  context.setLineDash([7 * ratio, 4 * ratio]);
  for (const [x, y, w, h] of regions) {
    for (const [colour, thick] of STROKES) {
      context.strokeStyle = colour;
      context.lineWidth = thick * ratio;
      context.strokeRect(place.x + x * place.scale - gap, place.y + y * place.scale - gap,
        w * place.scale + 2 * gap, h * place.scale + 2 * gap);
    }
  }
  context.setLineDash([]);
}

function loadImage(url) {
  return new Promise((resolve) => {
    const image = new Image();
    image.onload = () => resolve(image);
    image.onerror = () => resolve(null);
    image.src = url;
  });
}

// {image, heat, outline, regions} of a part, or null if the station has its picture no more.
async function loadScene(part) {
  if (!part || !part.image) return null;
  const wantsMap = part.score !== null;
  const [image, map] = await Promise.all([
    loadImage(pictureUrl(part.image)),
    wantsMap ? loadImage(pictureUrl(part.image + ":map")) : null,
  ]);
  const heat = map && heatOf(map);
  return image && { image, heat: heat && heat.canvas, outline: heat && heat.outline, regions: part.regions, part };
}

function pictureUrl(ref) { return "/picture/" + ref.split("/").map(encodeURIComponent).join("/"); }
