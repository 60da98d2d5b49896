"use strict";
// Charts as SVG text, drawn anew for the width that there is.

const escapeHtml = (text) =>
  String(text).replace(/[&<>"]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[c]);
const digits = (x, n) => (Math.abs(x) >= 1000 ? Math.round(x).toLocaleString("en") : String(Number(x.toPrecision(n))));
// A change, without its sign of percent.
const change = (x, n = 2) => {
  const value = 100 * x;
  const size = Math.abs(value);
  return `${value > 0 ? "+" : value < 0 ? "\u2212" : ""}${size >= 100 ? Math.round(size).toLocaleString("en") : size.toFixed(n)}`;
};
const percent = (x, n) => `${change(x, n)} %`;

// Round values over [low, high] for an axis, about n of them.
function ticks(low, high, n) {
  const rough = (high - low) / n || 1;
  const unit = 10 ** Math.floor(Math.log10(rough));
  const step = unit * [1, 2, 5, 10].find((m) => m * unit >= rough);
  const list = [];
  for (let i = Math.ceil(low / step); i * step <= high + step / 1e6; ++i) list.push(Number((i * step).toPrecision(6)));
  return list;
}

function logTicks(low, high) {
  const list = [];
  for (let e = Math.floor(Math.log10(low)); 10 ** e <= high * 1.001; ++e) if (10 ** e >= low * 0.999) list.push(10 ** e);
  return list.length > 1 ? list : [low, high].map((x) => Number(x.toPrecision(1)));
}

// Where a value is drawn: from [low, high] to [from, to].
function scale(low, high, from, to, isLog) {
  const f = isLog ? Math.log10 : (x) => x;
  const span = f(high) - f(low) || 1;
  return (x) => from + ((f(Math.min(Math.max(x, low), high)) - f(low)) / span) * (to - from);
}

const drawings = [];
// Adds a figure to `parent`: draw(width) gives SVG content and height.
function chart(parent, label, draw) {
  const box = document.createElement("div");
  box.className = "chart";
  parent.append(box);
  const redraw = () => {
    const width = Math.max(260, box.clientWidth - 18);
    const { height, body } = draw(width);
    box.innerHTML =
      `<svg role="img" aria-label="${escapeHtml(label)}" viewBox="0 0 ${width} ${height}" height="${height}">${body}</svg>`;
  };
  drawings.push(redraw);
  return redraw;
}
function redrawAll() {
  for (const redraw of drawings) redraw();
}

function key(names) {
  const items = names.map((name, i) => `<li><i style="border-color:var(--s${i + 1})"></i>${escapeHtml(name)}</li>`);
  return `<ul class="key">${items.join("")}</ul>`;
}

// rows: {label, mean, low, high, isMarked}; values above 0 on a logarithmic axis. The label stands above its bar.
function barChart(parent, label, rows, unit) {
  return chart(parent, label, (width) => {
    const positive = rows.map((r) => r.mean).filter((x) => x > 0);
    const low = Math.min(...positive) / 2;
    const high = Math.max(...rows.map((r) => Math.max(r.mean, r.high)));
    const x = scale(low, high, 4, width - 64, true);
    const step = 36;
    const body = rows.map((r, i) => {
      const y = i * step;
      const title = `${r.label}: ${digits(r.mean, 3)} ${unit}, 95 % interval ${digits(r.low, 3)} to ${digits(r.high, 3)}`;
      const whisker = r.mean > 0 ? `<path class="axis" d="M${x(Math.max(r.low, low))} ${y + 25}H${x(r.high)}"/>` : "";
      return `<g><title>${escapeHtml(title)}</title>
        <text x="4" y="${y + 13}"${r.isMarked ? ' font-weight="700"' : ""}>${escapeHtml(r.label)}</text>
        <rect x="4" y="${y + 19}" width="${Math.max(1, x(r.mean) - 4)}" height="12" rx="2"
          fill="var(--s${r.isMarked ? 3 : 1})" opacity="0.75"/>${whisker}
        <text class="quiet" x="${Math.max(x(r.mean), x(r.high)) + 6}" y="${y + 30}">${digits(r.mean, 3)}</text></g>`;
    });
    return { height: rows.length * step + 4, body: body.join("") };
  });
}

// series: a function that gives [{points: [{x, y, low, high, title}]}] as they are now; options: xLabel, yLabel, xTicks, xNames, isLog, yMax.
function lineChart(parent, label, series, options) {
  return chart(parent, label, (width) => {
    const height = 250;
    const list = series();
    const all = list.flatMap((s) => s.points);
    const ys = all.flatMap((p) => [p.y, p.high ?? p.y, p.low ?? p.y]).filter((y) => !options.isLog || y > 0);
    let [low, high] = options.isLog ? [Math.min(...ys) / 1.2, Math.max(...ys) * 1.2] : [Math.min(0, ...ys), Math.max(...ys) * 1.05];
    if (options.isLog && low < high / 1e4) low = high / 1e4;
    const y = scale(low, high, height - 40, 18, options.isLog);
    const xs = all.map((p) => p.x);
    const x = scale(Math.min(...xs), Math.max(...xs), 50, width - 14);
    const yTicks = options.isLog ? logTicks(low, high) : ticks(low, high, 5);
    const xTicks = options.xTicks ?? ticks(Math.min(...xs), Math.max(...xs), width / 90);
    const grid = yTicks.map(
      (t) => `<path class="grid" d="M50 ${y(t)}H${width - 14}"/><text class="quiet" x="45" y="${y(t) + 4}" text-anchor="end">${digits(t, 2)}</text>`);
    const names = xTicks.map((t, i) =>
      `<text class="quiet" x="${x(t)}" y="${height - 24}" text-anchor="middle">${options.xNames ? options.xNames[i] : t}</text>`);
    const lines = list.map((s, i) => drawSeries(s, `var(--s${i + 1})`, x, y));
    return {
      height,
      body: `${grid.join("")}${names.join("")}<path class="axis" d="M50 18V${height - 40}H${width - 14}"/>
        <text class="quiet" x="4" y="11">${escapeHtml(options.yLabel)}</text>
        <text class="quiet" x="${width - 14}" y="${height - 6}" text-anchor="end">${escapeHtml(options.xLabel)}</text>${lines.join("")}`,
    };
  });
}

function drawSeries(series, colour, x, y) {
  const path = series.points.map((p, i) => `${i ? "L" : "M"}${x(p.x).toFixed(1)} ${y(p.y).toFixed(1)}`).join("");
  const points = series.points.map((p) => {
    const whisker = p.high === undefined ? "" : `<path stroke="${colour}" d="M${x(p.x)} ${y(p.low)}V${y(p.high)}"/>`;
    return `<g><title>${escapeHtml(p.title)}</title>${whisker}<circle cx="${x(p.x)}" cy="${y(p.y)}" r="3" fill="${colour}"/></g>`;
  });
  return `<path d="${path}" fill="none" stroke="${colour}" stroke-width="1.8"/>${points.join("")}`;
}

// Dark blue over green to yellow: lighter is larger, also without colours.
function heat(part) {
  const stops = [[24, 18, 60], [36, 72, 130], [30, 130, 130], [110, 185, 90], [250, 230, 90]];
  const at = Math.min(Math.max(part, 0), 1) * (stops.length - 1);
  const i = Math.min(Math.floor(at), stops.length - 2);
  return stops[i].map((c, k) => Math.round(c + (stops[i + 1][k] - c) * (at - i)));
}

// bins: [tokens][channels].
function heatMap(canvas, bins, largest) {
  canvas.width = bins[0].length;
  canvas.height = bins.length;
  const context = canvas.getContext("2d");
  const image = context.createImageData(canvas.width, canvas.height);
  bins.flat().forEach((x, i) => image.data.set([...heat(Math.sqrt(x / largest)), 255], 4 * i));
  context.putImageData(image, 0, 0);
}
