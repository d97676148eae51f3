// Replays one backward pass.

const bytes = (count) =>
  count >= 2 ** 20 ? `${(count / 2 ** 20).toFixed(1)} MiB` : count >= 1024 ? `${(count / 1024).toFixed(1)} KiB` : `${count} bytes`;

// ---- The steps ---------------------------------------------------------------------------------

let current = 0;

function show(index) {
  current = Math.max(0, Math.min(data.steps.length - 1, index));
  const step = data.steps[current];
  byId("slider").value = current;
  byId("slider").setAttribute("aria-valuetext", `step ${current + 1} of ${data.steps.length}: ${step.operation}`);
  byId("count").textContent = `${current + 1} / ${data.steps.length}`;
  byId("operation").textContent = step.operation;
  byId("formula").textContent = step.formula;
  byId("step-facts").replaceChildren(
    ...fact("module", step.module || "the loss"),
    ...fact("called at", step.line),
    ...fact("output", `${step.shape.join(" × ") || "a number"}, ${step.dtype}`),
    ...fact("held for backward", bytes(step.bytes)),
    ...fact("incoming gradient", summary(step.gradient)),
  );
  const isOne = step.shape.length === 0;  // a number has no spread
  byId("histogram").replaceChildren(...(isOne ? [] : [histogram(step.gradient.histogram)]));
  byId("contributions").replaceChildren(...step.contributions.map(contribution));
  for (const each of document.querySelectorAll("#picture [data-stage]"))
    each.classList.toggle("current", each.dataset.stage === String(step.stage));
  const visited = new Set(data.steps.slice(0, current + 1).map((each) => each.stage));
  data.stages.forEach((stage, i) => byId(`stage-${i}`).classList.toggle("visited", visited.has(i)));
  for (const each of document.querySelectorAll(".operation"))
    each.toggleAttribute("aria-current", false);
  byId(`step-${current}`).setAttribute("aria-current", "step");
}

const fact = (name, value) => [element("dt", {}, name), element("dd", { class: "code" }, value)];

function summary(values) {
  const wrong = values.nan + values.infinite;
  return `norm ${number(values.norm)}, mean ${number(values.mean)}, largest ${number(values.largest)}, ` +
    `${(100 * values.zeros).toFixed(1)} % zeros${wrong ? `, ${wrong} not finite` : ""}`;
}

function contribution(each) {
  return element("tr", {}, element("td", {}, each.name), element("td", { class: "code" }, each.to),
    element("td", { class: "number" }, each.norm === undefined ? "none needed" : number(each.norm)));
}

/** How many elements have which size, by powers of two: gradients span so many that equal bins would show one column. */
function histogram({ counts, low, high }) {
  const most = Math.max(1, ...counts);
  const width = 320 / counts.length;
  return svg("svg", { viewBox: "0 0 320 84", role: "img",
    "aria-label": `how the sizes of the gradient's elements are spread, from ${number(low)} to ${number(high)}` },
  ...counts.map((count, i) => {
    const height = count ? Math.max(1, (64 * count) / most) : 0;
    return svg("rect", { x: i * width, y: 66 - height, width: width - 1, height, class: "bar" });
  }),
  ...[[0, "start", number(low)], [160, "middle", "size of the elements"], [320, "end", number(high)]].map(([x, anchor, text]) =>
    svg("text", { x, y: 80, "text-anchor": anchor, "font-size": 12, fill: "currentColor" }, text)));
}

function buildStages() {
  const list = data.stages.map((stage, i) => {
    const operations = data.steps.map((step, k) => [step, k]).filter(([step]) => step.stage === i);
    return element("details", { id: `stage-${i}`, class: stage.frozen ? "frozen" : "" },
      element("summary", {}, element("span", {}, stage.name),
        element("span", { class: "soft" }, stage.frozen ? "frozen" : `gradient of its weights ${number(stage.norm)}`)),
      operations.length
        ? element("div", {}, ...operations.map(([step, k]) => element("button",
          { class: "operation", id: `step-${k}`, type: "button", onclick: () => show(k) },
          element("span", {}, `${step.operation}  `, element("span", { class: "soft code" }, step.local)),
          element("span", { class: "soft" }, number(step.gradient.norm)))))
        : element("p", { class: "soft" }, "No gradient is computed here: nothing in it is trained."));
  });
  byId("stages").replaceChildren(...list.reverse());
}

let playing = null;

function play() {
  if (playing === null && current === data.steps.length - 1) show(0);
  if (playing !== null || current === data.steps.length - 1) return pause();
  byId("play").textContent = "Pause";
  playing = setInterval(() => (current < data.steps.length - 1 ? show(current + 1) : pause()), 180);
}

function pause() {
  clearInterval(playing);
  playing = null;
  byId("play").textContent = "Play";
}

byId("slider").addEventListener("input", (event) => show(Number(event.target.value)));
byId("next").addEventListener("click", () => show(current + 1));
byId("back").addEventListener("click", () => show(current - 1));
byId("play").addEventListener("click", play);
document.addEventListener("keydown", (event) => {
  if (event.target.matches("input, select") || event.ctrlKey || event.metaKey || event.altKey) return;
  const moves = { ArrowRight: 1, ArrowLeft: -1, PageDown: 10, PageUp: -10, Home: -Infinity, End: Infinity };
  if (event.key in moves) show(Math.max(0, Math.min(data.steps.length - 1, current + moves[event.key])));
  else if (event.key === " " && !event.target.matches("button, summary")) play();
  else return;
  event.preventDefault();
});
for (const each of document.querySelectorAll("#picture [data-stage]")) {
  const go = () => {
    const stage = byId(`stage-${each.dataset.stage}`);
    stage.open = true;
    const first = data.steps.findIndex((step) => String(step.stage) === each.dataset.stage);
    if (first >= 0) show(first);
    stage.scrollIntoView({ block: "nearest" });
  };
  each.addEventListener("click", go);
  each.addEventListener("keydown", (event) => event.key === "Enter" && go());
}

// ---- Tokens and attention ----------------------------------------------------------------------

function buildTokens() {
  const most = Math.max(1e-30, ...data.tokens.map((token) => Math.abs(token.saliency)));
  byId("tokens").replaceChildren(...data.tokens.map((token) => element("li", {
    style: `background: color-mix(in srgb, var(--${token.saliency > 0 ? "positive" : "negative"}) ` +
      `${Math.round((70 * Math.abs(token.saliency)) / most)}%, transparent)`,
  }, token.text, element("small", {}, number(token.saliency)))));
}

/** The probabilities of one layer and head as T rows of T numbers from 0 to 255, from base64. */
function probabilities(layer, head) {
  const count = data.tokens.length;
  const raw = atob(data.attention[layer].heads[head]);
  const rows = Array.from({ length: count }, () => new Uint8Array(count));
  const kept = data.attention_kept;
  for (let row = 0; row < count; row++) {
    for (let k = 0; k < kept; k++) {
      // With all columns kept a byte is a probability; else a column, in two bytes, goes before it.
      const at = kept === count ? row * count + k : 3 * (row * kept + k);
      const column = kept === count ? k : raw.charCodeAt(at) + 256 * raw.charCodeAt(at + 1);
      rows[row][column] = raw.charCodeAt(kept === count ? at : at + 2);
    }
  }
  return rows;
}

function drawAttention() {
  const rows = probabilities(byId("layer").value, byId("head").value);
  const canvas = byId("attention-map");
  const cell = Math.max(6, Math.min(28, Math.floor(600 / rows.length)));
  const labels = cell >= 9 && canvas.parentElement.clientWidth > 500 ? 92 : 0;  // on a phone the cell is read by touch
  const sharpness = Math.max(1, window.devicePixelRatio || 1);
  const size = labels + cell * rows.length;
  canvas.width = canvas.height = size * sharpness;
  const context = canvas.getContext("2d");
  context.scale(sharpness, sharpness);
  const style = getComputedStyle(document.documentElement);
  context.clearRect(0, 0, size, size);
  context.fillStyle = style.getPropertyValue("--soft");
  context.font = `${Math.min(12, cell)}px ui-monospace, monospace`;
  context.textBaseline = "middle";
  if (labels) data.tokens.forEach((token, i) => {
    const text = token.text.slice(0, 11);
    context.textAlign = "right";
    context.fillText(text, labels - 4, labels + cell * (i + 0.5));
    context.save();
    context.translate(labels + cell * (i + 0.5), labels - 4);
    context.rotate(-Math.PI / 2);
    context.textAlign = "left";
    context.fillText(text, 0, 0);
    context.restore();
  });
  context.fillStyle = style.getPropertyValue("--forward");
  rows.forEach((row, i) => row.forEach((value, j) => {
    context.globalAlpha = Math.sqrt(value / 255);  // or most cells of a long text would be as good as blank
    context.fillRect(labels + cell * j, labels + cell * i, cell - 1, cell - 1);
  }));
  context.globalAlpha = 1;
  canvas.onpointermove = (event) => {
    const scale = size / canvas.clientWidth;
    const column = Math.floor((event.offsetX * scale - labels) / cell);
    const row = Math.floor((event.offsetY * scale - labels) / cell);
    if (row in rows && column in rows)
      byId("attention-cell").textContent =
        `“${data.tokens[row].text}” gives ${(rows[row][column] / 2.55).toFixed(1)} % of its attention to “${data.tokens[column].text}”`;
  };
}

function buildAttention() {
  if (!data.attention.length) return byId("attention").remove();
  byId("layer").replaceChildren(...data.attention.map((layer, i) => element("option", { value: i }, layer.name)));
  byId("head").replaceChildren(...data.attention[0].heads.map((_, i) => element("option", { value: i }, `head ${i + 1}`)));
  byId("layer").addEventListener("change", drawAttention);
  byId("head").addEventListener("change", drawAttention);
}

byId("slider").max = data.steps.length - 1;
buildStages();
buildTokens();
buildAttention();
followTheme(() => data.attention.length && drawAttention());  // a canvas does not follow the style by itself
show(0);
