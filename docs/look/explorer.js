// Filter, order and export of the papers table. Its state is the query string; the rows are those of the page.
(() => {
  const $ = (s, r = document) => r.querySelector(s), $$ = (s, r = document) => [...r.querySelectorAll(s)];
  const form = $("#explorer"), q = $("#papers-q"), sort = form.elements.sort, facets = $(".facets", form), body = $(".papers tbody");
  const here = document.currentScript.src, plain = { ø: "o", ł: "l", đ: "d", ß: "ss" };
  const fold = words => words.normalize("NFD").replace(/\p{M}/gu, "").toLowerCase().replace(/[øłđß]/g, letter => plain[letter]);

  // ---- papers and boxes: every box has a number, every paper the numbers of its boxes ----------
  const boxes = $$("input[type=checkbox]", form).map(input => {
    const label = input.closest("label");
    return { input, label, name: input.name, value: input.value, bar: $("i", label), number: $("b", label), shown: -1, width: -1 };
  });
  const keys = [...new Set(boxes.map(box => box.name))], at = new Map(boxes.map((box, i) => [box.name + "=" + box.value, i]));
  for (const box of boxes) box.key = keys.indexOf(box.name);
  const papers = $$("tr", body).map((tr, i) => {
    const { has, words, posted } = window.elviPapers[tr.id];
    return { tr, i, posted, name: fold($(".nm", tr).textContent), text: fold(tr.textContent + " " + words), has: has.map(key => at.get(key)), hidden: false };
  });
  const orders = {
    "": (a, b) => a.i - b.i, name: (a, b) => a.name < b.name ? -1 : 1,
    newest: (a, b) => a.posted < b.posted ? 1 : a.posted > b.posted ? -1 : a.i - b.i,
    oldest: (a, b) => a.posted < b.posted ? -1 : a.posted > b.posted ? 1 : a.i - b.i,
  };

  // ---- painting: a paper fits if it has one chosen box of every facet; counts ignore their own facet ----
  let ordered = "";
  const paint = () => {
    const words = fold(q.value).split(/\s+/).filter(Boolean), asked = keys.map(() => false), counts = boxes.map(() => 0);
    for (const box of boxes) if (box.input.checked) asked[box.key] = true;
    const met = keys.map(() => false);
    let shown = 0;
    for (const paper of papers) {
      let fits = words.every(word => paper.text.includes(word)), missed = 0, which = -1;
      if (fits) {
        met.fill(false);
        for (const i of paper.has) if (boxes[i].input.checked) met[boxes[i].key] = true;
        for (let k = 0; k < keys.length; k++) if (asked[k] && !met[k]) { missed++; which = k; }
        if (missed < 2) for (const i of paper.has) if (!missed || boxes[i].key === which) counts[i]++;
        fits = !missed;
      }
      if (paper.hidden === fits) paper.tr.hidden = paper.hidden = !fits;
      shown += fits;
    }
    const most = keys.map((_, k) => Math.max(1, ...counts.filter((_, i) => boxes[i].key === k)));
    boxes.forEach((box, i) => {
      const width = Math.round(100 * counts[i] / most[box.key]);
      if (box.shown !== counts[i]) { box.number.textContent = box.shown = counts[i]; box.label.classList.toggle("zero", !counts[i]); }
      if (box.width !== width) box.bar.style.setProperty("--n", box.width = width);
    });
    if (ordered !== sort.value) {
      ordered = sort.value;
      const column = { name: 0, newest: 3, oldest: 3 }[ordered] ?? 1, way = ordered === "newest" ? "descending" : "ascending";
      $$(".papers thead th").forEach((th, i) => i === column ? th.setAttribute("aria-sort", way) : th.removeAttribute("aria-sort"));
      body.append(...papers.sort(orders[ordered]).map(paper => paper.tr));
    }
    $("#papers-count").textContent = shown; $("#papers-none").hidden = shown > 0;
    const chosen = boxes.filter(box => box.input.checked);
    $("#papers-pills").replaceChildren(...chosen.map(pill)); $("#papers-pills").hidden = !chosen.length;
    $("#papers-clear").hidden = !chosen.length && !q.value;
    for (const button of $$("[data-format]")) button.disabled = !shown;
    const beside = $("#papers-compare");
    beside.hidden = shown < 2 || shown > 6;
    if (!beside.hidden) beside.search = "?ids=" + papers.filter(paper => !paper.hidden).map(paper => paper.tr.id).join();
  };
  const pill = box => {
    const button = document.createElement("button");
    button.type = "button"; button.className = "pill"; button.textContent = $("span", box.label).textContent;
    button.setAttribute("aria-label", "Remove filter " + button.textContent);
    button.onclick = () => { box.input.checked = false; write(true); ($(".pill") || q).focus(); };
    return button;
  };

  // ---- the address: a box makes a step back, letters and order do not -----------------------------
  const query = () => {
    const asked = new URLSearchParams();
    for (const box of boxes) if (box.input.checked) asked.append(box.name, box.value);
    if (q.value) asked.set("q", q.value);
    if (sort.value) asked.set("sort", sort.value);
    return asked.toString().replaceAll("%2F", "/");
  };
  const write = step => {
    const asked = query();
    history[step ? "pushState" : "replaceState"](null, "", asked ? "?" + asked : location.pathname);
    $("#papers-notice").hidden = true; paint();
  };
  const read = () => {
    const asked = new URLSearchParams(location.search), wanted = new Set([...asked].map(pair => pair.join("=")));
    for (const box of boxes) {
      box.input.checked = wanted.has(box.name + "=" + box.value);
      const folded = box.label.closest("fieldset details");
      if (box.input.checked && folded) folded.open = true;
    }
    q.value = asked.get("q") || ""; sort.value = asked.get("sort") in orders ? asked.get("sort") : "";
    const lost = [...asked].filter(([key, value]) => !["q", "theme"].includes(key) && !at.has(key + "=" + value) && !(key === "sort" && value in orders));
    const notice = $("#papers-notice");
    notice.hidden = !lost.length; notice.textContent = `The link asks for ${lost.map(pair => pair.join("=")).join(", ")}, which is not in the catalog, and was followed without it.`;
    paint();
  };
  form.onsubmit = event => event.preventDefault();
  form.onchange = event => { if (event.target !== q) write(event.target !== sort); };
  q.oninput = () => write(false);
  $("#papers-clear").onclick = () => { for (const box of boxes) box.input.checked = false; q.value = ""; write(true); q.focus(); };
  addEventListener("popstate", read);

  // ---- keys: down from the words to the papers and on, up again, Escape back to the words ------------
  document.addEventListener("keydown", event => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key], on = document.activeElement, named = on.closest(".papers .nm");
    if (on !== q && !named || event.altKey || event.ctrlKey || event.metaKey) return;
    if (event.key === "Escape" && named) q.focus();
    if (!step) return;
    const shown = papers.filter(paper => !paper.hidden), next = named ? shown.findIndex(paper => paper.tr.contains(named)) + step : step > 0 ? 0 : -1;
    event.preventDefault();
    (next < 0 ? q : $(".nm", (shown[next] || shown.at(-1))?.tr))?.focus();
  });

  // ---- export: the file of a format is loaded when it is asked for; the set is what is shown ---------
  const formats = {};
  const load = name => formats[name] ||= new Promise((done, failed) => {
    const script = document.createElement("script");
    script.src = new URL(`../papers/export/${name}.js`, here);
    script.onload = () => done(window.elviExport); script.onerror = failed; document.head.append(script);
  });
  const save = async name => {
    const { file, type, head, between, tail, texts } = await load(name), link = document.createElement("a");
    const chosen = papers.filter(paper => !paper.hidden).map(paper => texts[paper.tr.id]);
    link.href = URL.createObjectURL(new Blob([head + chosen.join(between) + tail], { type })); link.download = file;
    link.click(); setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  };
  for (const button of $$("[data-format]")) button.onclick = () => save(button.dataset.format);

  const wide = matchMedia("(min-width:1001px)");
  wide.onchange = () => { facets.open = wide.matches; };
  $("#papers-export").hidden = false; read();
})();
