// Every visible text whose contrast with its ground is below 4.5 (WCAG 2, level AA).
const lum = (c) => { const f = (v) => { v /= 255; return v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; };
  return .2126 * f(c[0]) + .7152 * f(c[1]) + .0722 * f(c[2]); };
const rgb = (s) => { const m = s.match(/[\d.]+/g).map(Number); return m.length < 4 ? [...m, 1] : m; };
const ground = (node) => { for (let n = node; n; n = n.parentElement) {
  const c = rgb(getComputedStyle(n).backgroundColor); if (c[3] > .7) return c; } return [255, 255, 255]; };
const bad = [];
for (const node of document.querySelectorAll('body *')) {
  const own = [...node.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
  if (!own || !node.checkVisibility({visibilityProperty: true}) || ['SCRIPT', 'STYLE'].includes(node.tagName)) continue;
  if (node.disabled || node.closest('.stage')) continue;
  const a = lum(rgb(getComputedStyle(node).color)), b = lum(ground(node));
  const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
  if (ratio < 4.5) bad.push([node.id || node.className || node.tagName, node.textContent.slice(0, 20), ratio]);
}
return bad;
