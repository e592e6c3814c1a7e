"use strict";
// The anomaly map comes as grey: 128 is the alarm level. Below half of it nothing is drawn, so
// that the part itself stays visible; colours go yellow, red, magenta.
const HEAT_FROM = 72, HEAT_FULL = 150;

function heatColour(grey) {
  if (grey <= HEAT_FROM) return [0, 0, 0, 0];
  const t = Math.min(1, (grey - HEAT_FROM) / (HEAT_FULL - HEAT_FROM));
  const hot = Math.max(0, Math.min(1, (grey - 128) / 127));
  return [255 - 45 * hot, Math.round(210 * (1 - t)), Math.round(110 * hot), Math.round(255 * (0.25 + 0.75 * t))];
}

// A grey map image to a coloured, transparent canvas of the same size.
function heatCanvas(map) {
  const canvas = document.createElement("canvas");
  canvas.width = map.naturalWidth;
  canvas.height = map.naturalHeight;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(map, 0, 0);
  const pixels = context.getImageData(0, 0, canvas.width, canvas.height);
  for (let i = 0; i < pixels.data.length; i += 4) {
    const [r, g, b, a] = heatColour(pixels.data[i]);
    pixels.data[i] = r; pixels.data[i + 1] = g; pixels.data[i + 2] = b; pixels.data[i + 3] = a;
  }
  context.putImageData(pixels, 0, 0);
  return canvas;
}

// Where a picture of w x h lies inside a box, whole and centred.
function contain(width, height, w, h) {
  const scale = Math.min(width / w, height / h);
  return { x: (width - w * scale) / 2, y: (height - h * scale) / 2, w: w * scale, h: h * scale, scale };
}

// scene: {image, heat, regions}; view: {heat: bool, opacity: 0..1, boxes: bool}
function drawScene(canvas, scene, view) {
  const ratio = window.devicePixelRatio || 1;
  const width = Math.round(canvas.clientWidth * ratio), height = Math.round(canvas.clientHeight * ratio);
  if (!width || !height) return;
  if (canvas.width !== width || canvas.height !== height) { canvas.width = width; canvas.height = height; }
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, width, height);
  if (!scene || !scene.image) return;
  const place = contain(width, height, scene.image.naturalWidth, scene.image.naturalHeight);
  context.drawImage(scene.image, place.x, place.y, place.w, place.h);
  if (view.heat && scene.heat) {
    context.globalAlpha = view.opacity;
    context.drawImage(scene.heat, place.x, place.y, place.w, place.h);
    context.globalAlpha = 1;
  }
  if (view.boxes) drawRegions(context, scene.regions || [], place, ratio);
}

function drawRegions(context, regions, place, ratio) {
  for (const [x, y, w, h] of regions) {
    const left = place.x + x * place.scale, top = place.y + y * place.scale;
    // Dark under light: visible on any part.
    for (const [colour, thick] of [["#000", 5], ["#fff", 2]]) {
      context.strokeStyle = colour;
      context.lineWidth = thick * ratio;
      context.strokeRect(left, top, w * place.scale, h * place.scale);
    }
  }
}

function loadImage(url) {
  return new Promise((resolve) => {
    const image = new Image();
    image.onload = () => resolve(image);
    image.onerror = () => resolve(null);
    image.src = url;
  });
}

// {image, heat, regions} of a part, or null if the station has its picture no more.
async function loadScene(part) {
  if (!part || !part.image) return null;
  const wantsMap = part.score !== null;
  const [image, map] = await Promise.all([
    loadImage(pictureUrl(part.image)),
    wantsMap ? loadImage(pictureUrl(part.image + ":map")) : null,
  ]);
  return image && { image, heat: map && heatCanvas(map), regions: part.regions, part };
}

function pictureUrl(ref) { return "/picture/" + ref.split("/").map(encodeURIComponent).join("/"); }
