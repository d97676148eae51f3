
// ---- While the training goes on: what is new, once a second ------------------------------------

async function refresh() {
  try {
    show(await (await fetch("data.json", { cache: "no-store" })).json());
    if (data.finished) return;
  } catch {
    byId("state").textContent = `The process that trains does not answer. At step ${data.steps} of ${data.total_steps} it last did.`;
  }
  setTimeout(refresh, 1000);
}

refresh();
