// Shows how a training went. While it goes on, `minift finetune --watch` calls `show` with newer data.

/** Ends of intervals that people count in: 1, 2 or 5 times a power of ten apart, about `count` of them. */
function ticks(low, high, count) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((each) => each * power >= rough * 0.999) * power;
  const first = Math.ceil(low / step - 1e-9);
  return Array.from({ length: Math.max(0, Math.floor(high / step + 1e-9) - first + 1) }, (_, i) => (first + i) * step);
}

const same = (one, other) => JSON.stringify(one) === JSON.stringify(other);
const short = (value) => value === 0 ? "0" : Math.abs(value) >= 1e-3 && Math.abs(value) < 1e5
  ? String(Number(value.toPrecision(6))) : value.toExponential().replace(/(\.\d{1,2})\d*e/, "$1e");
const colour = (name) => `var(--${name})`;
const line = (x1, y1, x2, y2, kind) => svg("line", { x1, y1, x2, y2, class: kind });
const label = (x, y, anchor, text) => svg("text", { x, y, "text-anchor": anchor }, text);

/** What can be read by pointing at it and, once it has the focus, by key: `read` is called with a new place. */
function readable(drawing, placeAt, keys, read) {
  drawing.addEventListener("pointermove", (event) => {
    const box = drawing.getBoundingClientRect();
    read(placeAt(event.clientX - box.left, event.clientY - box.top));
  });
  drawing.addEventListener("keydown", (event) => {
    if (!(event.key in keys) || event.ctrlKey || event.metaKey || event.altKey) return;
    read(keys[event.key]());
    event.preventDefault();
  });
}

// ---- Curves ------------------------------------------------------------------------------------

const LEFT = 58, BOTTOM = 38, TOP = 10, RIGHT = 12;

/** Axes from (0, 0) to (xs, high) in a drawing of this size, and where a value stands. */
function axes(width, height, [firstX, lastX], high, xLabel, yLabel) {
  const x = (value) => LEFT + ((value - firstX) / (lastX - firstX || 1)) * (width - LEFT - RIGHT);
  const y = (value) => height - BOTTOM - (value / high) * (height - BOTTOM - TOP);
  const drawn = [
    ...ticks(0, high, 4).flatMap((value) => [
      line(LEFT, y(value), width - RIGHT, y(value), "grid"), label(LEFT - 6, y(value) + 4, "end", short(value))]),
    ...ticks(firstX, lastX, Math.max(2, Math.floor(width / 110))).filter((value) => value === Math.round(value)).map((value) =>
      label(x(value), height - BOTTOM + 16, "middle", value)),
    line(LEFT, y(0), width - RIGHT, y(0), "axis"),
    label((LEFT + width - RIGHT) / 2, height - 5, "middle", xLabel),
    svg("text", { transform: `translate(12 ${(TOP + height - BOTTOM) / 2}) rotate(-90)`, "text-anchor": "middle" }, yLabel),
  ];
  return { x, y, drawn };
}

/** A curve over the steps. `series` makes of the data the lines: {name, colour, values, faint}; `limit` a level. */
function curve({ name, title, unit, series, limit = () => null }) {
  const drawing = svg("svg", { role: "img", tabindex: 0, id: `curve-${name}` });
  const readout = element("span", { class: "readout", "aria-live": "polite" });
  const legend = element("span");
  const figure = element("figure", {}, element("figcaption", {}, element("strong", {}, title), legend, readout), drawing);
  let at = null, last = null;

  function draw() {
    const width = Math.max(240, figure.clientWidth), height = 220;
    const lines = series(), level = limit();
    const count = lines[0].values.length;
    const step = (i) => Math.min(data.steps, (i + 1) * data.steps_per_point);
    const finite = lines.flatMap((each) => each.values).filter((value) => value !== null);
    const high = Math.max(...finite, 1e-12) * 1.05;
    const { x, y, drawn } = axes(width, height, [0, data.total_steps], high, "step", unit);
    drawing.setAttribute("viewBox", `0 0 ${width} ${height}`);
    drawing.setAttribute("aria-label", `${title}, step by step`);
    legend.replaceChildren(...(lines.length < 2 ? [] : lines.flatMap((each) => [
      element("span", { class: "key", style: `background: ${colour(each.colour)}; opacity: ${each.faint ? 0.45 : 1}` }), `${each.name}  `])));
    const path = (values) => values.map((value, i) => value === null ? "" :
      `${i === 0 || values[i - 1] === null ? "M" : "L"}${x(step(i)).toFixed(1)} ${y(value).toFixed(1)}`).join("");
    const shownLimit = level !== null && level <= high
      ? [line(LEFT, y(level), width - RIGHT, y(level), "limit"), label(width - RIGHT - 4, y(level) - 5, "end", `clipped above ${short(level)}`)] : [];
    const marks = svg("g");
    drawing.replaceChildren(...drawn, ...shownLimit, ...lines.map((each) => svg("path", {
      d: path(each.values), fill: "none", stroke: colour(each.colour), "stroke-width": each.faint ? 1 : 2, opacity: each.faint ? 0.45 : 1,
    })), ...(count === 1 ? lines.map((each) => svg("circle", { cx: x(step(0)), cy: y(each.values[0]), r: 3, fill: colour(each.colour) })) : []), marks);
    last = { x, y, step, lines, count, marks, height };
    if (at !== null) read(at);
  }

  function read(place) {
    if (!last.count) return;
    at = Math.max(0, Math.min(last.count - 1, place));
    const { x, y, step, lines, marks, height } = last;
    const from = at * data.steps_per_point + 1, to = step(at);
    readout.textContent = `${from === to ? `step ${to}` : `steps ${from} to ${to}, mean`}: ` +
      lines.map((each) => `${lines.length > 1 ? `${each.name} ` : ""}${number(each.values[at])}`).join(", ");
    marks.replaceChildren(line(x(to), TOP, x(to), height - BOTTOM, "cursor"), ...lines.filter((each) => each.values[at] !== null).map((each) =>
      svg("circle", { cx: x(to), cy: y(each.values[at]), r: 4, fill: colour(each.colour) })));
  }

  const move = (by) => () => (at === null ? 0 : at + by);
  readable(drawing, (x) => {
    const steps = ((x - LEFT) / (last.x(data.total_steps) - LEFT)) * data.total_steps;
    return Math.round(steps / data.steps_per_point) - 1;
  }, { ArrowRight: move(1), ArrowLeft: move(-1), PageDown: move(10), PageUp: move(-10), Home: () => 0, End: () => Infinity }, read);
  byId("curves").append(figure);
  return draw;
}

/** The mean of each value and its neighbours, as many on either side: it does not lag behind. */
function smoothed(values) {
  const reach = Math.ceil(values.length / 30);
  return values.map((_, i) => {
    const near = Math.min(reach, i, values.length - 1 - i);
    const around = values.slice(i - near, i + near + 1).filter((value) => value !== null);
    return around.length ? around.reduce((sum, value) => sum + value, 0) / around.length : null;
  });
}

// ---- The heat map ------------------------------------------------------------------------------

const ratio = (over, under) => over.map((value, i) => (value === null || !under[i] ? null : value / under[i]));
const QUANTITIES = {
  ratio: ["update / weight", (one) => ratio(one.update, one.weight), "The norm of what a step adds to a part's trained weights, over their own norm. Around 0.001 is a rule of thumb for training from nothing."],
  gradient: ["gradient norm", (one) => one.gradient, "The norm of the gradient of a part's trained weights, before it is clipped."],
  update: ["update norm", (one) => one.update, "The norm of what a step adds to a part's trained weights."],
};
const heatMap = svg("svg", { role: "img", tabindex: 0, id: "heat-map" });
let heatAt = null, heatShown = null;

function drawHeat() {
  const [name, of, note] = QUANTITIES[byId("quantity").value];
  byId("heat-note").textContent = `${note} ${data.stride === 1 ? "" : `Of every ${data.stride} steps one is measured.`}`;
  const width = Math.max(240, byId("heat").clientWidth), left = 104, row = data.parts.length > 16 ? 16 : 22, top = 4;
  const values = data.measured.map(of);  // column by column
  const positive = values.flat().filter((value) => value > 0);
  const high = Math.log10(Math.max(...positive));
  const low = Math.max(high - 3, Math.log10(Math.min(...positive)));  // three powers of ten are as many as can be told apart
  const share = (value) => (high > low ? Math.max(0, (Math.log10(value) - low) / (high - low)) : 1);
  const columns = Math.floor(data.total_steps / data.stride);
  const cell = (width - left - RIGHT) / columns;
  const bottom = top + row * data.parts.length;
  const y = (part) => bottom - row * (part + 1);  // the head on top
  const fill = (value) => value > 0 ? `color-mix(in oklab, var(--gradient) ${(8 + 92 * share(value)).toFixed(1)}%, var(--card))` : "none";
  heatMap.setAttribute("viewBox", `0 0 ${width} ${bottom + 74}`);
  heatMap.setAttribute("aria-label", `${name} of each part, step by step`);
  const scale = Math.min(220, width - left - 90);
  const marks = svg("g");
  heatMap.replaceChildren(
    ...data.parts.map((part, i) => label(left - 6, y(i) + row / 2 + 4, "end", data.trained[i] ? part : `${part} ✻`)),
    svg("rect", { x: left, y: top, width: cell * columns, height: bottom - top, class: "outline" }),
    ...values.flatMap((column, i) => column.map((value, part) => svg("rect", {
      x: (left + cell * i).toFixed(2), y: y(part), width: Math.max(1, cell - (cell > 6 ? 1 : 0)).toFixed(2), height: row - 1, style: `fill: ${fill(value)}`,
      class: "cell",
    }))),
    ...Array.from({ length: columns }, (_, i) => i + 1).filter((i) => i % Math.ceil(columns / (width / 70)) === 0).map((i) =>
      label(left + cell * (i - 0.5), bottom + 16, "middle", i * data.stride)),
    label(left + (cell * columns) / 2, bottom + 32, "middle", "step"),
    ...(positive.length ? [
      ...Array.from({ length: 24 }, (_, i) => svg("rect", { x: left + (scale / 24) * i, y: bottom + 46, width: scale / 24 + 0.5, height: 10, style: `fill: ${fill(10 ** (low + ((high - low) * i) / 23))}` })),
      label(left, bottom + 70, "start", number(10 ** low)), label(left + scale, bottom + 70, "end", number(10 ** high)),
      label(left + scale / 2, bottom + 70, "middle", "log"),
    ] : []),
    ...(data.trained.every(Boolean) ? [] : [label(left - 6, bottom + 55, "end", "✻ frozen")]),
    marks,
  );
  heatShown = { values, name, y, left, cell, row, bottom, marks, columns };
  if (heatAt) readHeat(heatAt);
}

function readHeat([column, part]) {
  const { values, name, y, left, cell, row, marks } = heatShown;
  if (!values.length) return;
  heatAt = [Math.max(0, Math.min(values.length - 1, column)), Math.max(0, Math.min(data.parts.length - 1, part))];
  [column, part] = heatAt;
  const value = values[column][part];
  const said = !data.trained[part] ? "frozen" : value === null ? "none: its weights are all 0" : number(value);
  byId("heat-cell").textContent = `${data.parts[part]}, step ${data.measured[column].step}: ${name} ${said}`;
  marks.replaceChildren(svg("rect", { x: left + cell * column, y: y(part), width: cell, height: row - 1, fill: "none", class: "cell current" }));
}

function buildHeat() {
  byId("heat").append(heatMap);
  byId("quantity").replaceChildren(...Object.entries(QUANTITIES).map(([value, [name]]) => element("option", { value }, name)));
  byId("quantity").addEventListener("change", drawHeat);
  const move = (right, up) => () => (heatAt === null ? [0, 0] : [heatAt[0] + right, heatAt[1] + up]);
  readable(heatMap, (x, y) => [Math.floor((x - heatShown.left) / heatShown.cell), Math.floor((heatShown.bottom - y) / heatShown.row)],
    { ArrowRight: move(1, 0), ArrowLeft: move(-1, 0), ArrowUp: move(0, 1), ArrowDown: move(0, -1), Home: () => [0, heatAt?.[1] ?? 0], End: () => [Infinity, heatAt?.[1] ?? 0] }, readHeat);
}

// ---- How far each part has moved ---------------------------------------------------------------

function drawMoved() {
  const width = Math.max(240, byId("moved").clientWidth), left = 104, row = 22;
  byId("moved-note").textContent = data.moved_at === data.steps ? "" : data.moved_at ? `As of step ${data.moved_at}.` : "Measured at the end of each epoch.";
  if (!data.moved.length) return byId("moved").replaceChildren();
  const shares = data.moved.map(([change, start]) => (start ? change / start : null));
  const most = Math.max(1e-30, ...shares);
  const room = width - left - 170;
  byId("moved").replaceChildren(svg("svg", { viewBox: `0 0 ${width} ${row * data.parts.length + 4}`, role: "img", "aria-label": "how far each part has moved" },
    ...data.parts.flatMap((part, i) => {
      const y = row * (data.parts.length - 1 - i);
      const [change] = data.moved[i];
      const said = !data.trained[i] ? "frozen" : shares[i] === null ? `norm ${number(change)}, from 0` : `${(100 * shares[i]).toPrecision(3)} %  (norm ${number(change)})`;
      const length = Math.max(0, (room * (shares[i] ?? 0)) / most);
      return [label(left - 6, y + 15, "end", part), svg("rect", { x: left, y: y + 3, width: length, height: row - 6, class: "bar" }), label(left + length + 6, y + 15, "start", said)];
    })));
}

// ---- Before and after --------------------------------------------------------------------------

const cells = (kind, values, attributes = {}) => values.map((value) => element(kind, attributes, value));

function showMetrics() {
  const { before, after } = data.metrics;
  if (!before) return byId("metrics").replaceChildren(element("p", { class: "soft" }, "There is no dev set (--dev) to judge by."));
  byId("metrics").replaceChildren(element("table", {},
    element("thead", {}, element("tr", {}, element("th", {}, "on the dev set"), ...cells("th", ["before", "after", "change"], { class: "number" }))),
    element("tbody", {}, ...Object.entries(before).map(([name, value]) => element("tr", {}, element("td", {}, name.replaceAll("_", " ")),
      ...cells("td", name === "examples" ? [value, after ? after[name] : "", ""] :
        [number(value), after ? number(after[name]) : "at the end", after ? `${after[name] >= value ? "+" : "−"}${number(Math.abs(after[name] - value))}` : ""], { class: "number" }))))));
}

function showOutcomes() {
  byId("outcomes").className = "pair";
  byId("outcomes").replaceChildren(...Object.entries(data.outcomes).filter(([, table]) => table).map(([when, { rows, columns, counts }]) => {
    const square = String(rows) === String(columns);
    return element("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": `outcomes ${when}` }, element("table", {},
      element("caption", {}, `${when[0].toUpperCase()}${when.slice(1)} training${square ? ": what was right (rows), what was said (columns)" : ""}`),
      element("thead", {}, element("tr", {}, element("th"), ...cells("th", columns))),
      element("tbody", {}, ...rows.map((row, i) => {
        const total = Math.max(1, counts[i].reduce((sum, count) => sum + count, 0));
        return element("tr", {}, element("th", {}, row), ...counts[i].map((count, j) => element("td", {
          class: square && i === j ? "right" : null, title: `${((100 * count) / total).toFixed(1)} % of the row`,
          style: `background: color-mix(in oklab, var(--forward) ${Math.round((55 * count) / total)}%, transparent)`,
        }, count)));
      }))));
  }));
}

function showChanged() {
  byId("changed-card").hidden = !data.changed;
  if (!data.changed) return;
  const { count, of, examples } = data.changed;
  const labelled = examples.some((each) => each.expected);
  byId("changed-note").textContent = `${count} of ${data.metrics.before.examples > of ? `the first ${of}` : `the ${of}`} dev examples ${count === 1 ? "gets" : "get"} another answer now` +
    (count > examples.length ? `; the ${examples.length} that changed most are shown.` : ".");
  byId("changed").replaceChildren(element("table", {},
    element("thead", {}, element("tr", {}, ...cells("th", ["text", ...(labelled ? ["right"] : []), "before", "after", ""]))),
    element("tbody", {}, ...examples.map((each) => element("tr", {}, ...cells("td", [each.text, ...(labelled ? [each.expected] : []), each.before, each.after]),
      element("td", { class: each.gain > 0 ? "better" : "worse" }, each.gain > 0 ? "▲ better" : each.gain < 0 ? "▼ worse" : ""))))));
}

// ---- The data ----------------------------------------------------------------------------------

function showData() {
  const { texts, counted, median, longest, truncated, max_length, balance } = data.data;
  byId("data-note").textContent = `${counted === texts ? `All ${texts} examples` : `${counted} texts from the first epoch, of ${texts} examples`}: ` +
    `half have ${median} tokens or fewer, the longest ${longest}. ` +
    (truncated ? `${truncated} were longer than ${max_length} tokens and were truncated.` : `None was longer than the maximum, ${max_length} tokens.`);
  const sides = Object.entries(balance);
  const names = [...new Set(sides.flatMap(([, counts]) => Object.keys(counts)))];
  byId("balance").replaceChildren(...(names.length ? [element("table", {},
    element("thead", {}, element("tr", {}, element("th", {}, "label"), ...cells("th", sides.map(([side]) => side)))),
    element("tbody", {}, ...names.map((name) => element("tr", {}, element("td", {}, name), ...sides.map(([, counts]) => {
      const all = Math.max(1, Object.values(counts).reduce((sum, count) => sum + count, 0)), count = counts[name] ?? 0;
      return element("td", {}, `${count} (${((100 * count) / all).toFixed(1)} %)`, element("span", { class: "share", style: `width: ${(100 * count) / all}%` }));
    })))))] : []));
}

function drawLengths() {
  const { counts, edges } = data.data.lengths;
  const width = Math.max(240, byId("lengths").clientWidth), height = 190;
  const { x, y, drawn } = axes(width, height, [0, edges.at(-1)], Math.max(...counts) * 1.05, "tokens in a text", "texts");
  const limit = data.data.max_length;
  byId("lengths").replaceChildren(svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "how long the texts are" }, ...drawn,
    ...counts.map((count, i) => svg("rect", { class: "bar", x: x(edges[i]), y: y(count), width: Math.max(1, x(edges[i + 1]) - x(edges[i]) - 1), height: y(0) - y(count) },
      svg("title", {}, `${edges[i]} to ${edges[i + 1] - 1} tokens: ${count} texts`))),
    ...(limit <= edges.at(-1) ? [line(x(limit), TOP, x(limit), y(0), "limit"), label(x(limit) - 4, TOP + 10, "end", `maximum ${limit}`)] : [])));
}

// ---- All of it ---------------------------------------------------------------------------------

const drawings = [
  curve({ name: "loss", title: "Loss", unit: "loss", series: () => [
    { name: "each step", colour: "forward", values: data.curves.loss, faint: true },
    { name: "smoothed", colour: "forward", values: smoothed(data.curves.loss) }] }),
  curve({ name: "rate", title: "Learning rate", unit: "rate", series: () => [{ name: "rate", colour: "accent", values: data.curves.learning_rate }] }),
  curve({ name: "norm", title: "Gradient norm", unit: "norm", limit: () => data.max_grad_norm,
    series: () => [{ name: "norm", colour: "gradient", values: data.curves.grad_norm }] }),
  drawHeat, drawMoved, drawLengths,
];
const draw = () => drawings.forEach((each) => each());

function show(newer) {
  const before = data;
  const isNew = (...names) => newer === before || names.some((name) => !same(newer[name], before[name]));
  data = newer;
  const epoch = Math.min(data.epochs, Math.floor((data.steps / data.total_steps) * data.epochs) + 1);
  byId("state").textContent = data.finished ? `Finished: ${data.steps} steps, ${data.epochs} epochs.`
    : `In training: step ${data.steps} of ${data.total_steps}, epoch ${epoch} of ${data.epochs}.`;
  // What did not change stays as it is, with what the reader has scrolled to, marked or given the focus.
  if (isNew("metrics", "outcomes", "changed")) {
    showMetrics();
    showOutcomes();
    showChanged();
  }
  if (isNew("steps", "measured", "moved")) draw();
  if (newer !== before) return;
  showData();
  byId("command").textContent = data.command;
  byId("versions").replaceChildren(...Object.entries(data.versions).flatMap(([name, value]) => [element("dt", {}, name), element("dd", { class: "code" }, value)]));
}

buildHeat();
followTheme(() => {});
show(data);
new ResizeObserver(draw).observe(document.body);
