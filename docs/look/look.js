// ELVI look: theme, copy, search. No dependency; every page reads fully without it.
(() => {
  const $ = (s, r = document) => r.querySelector(s), $$ = (s, r = document) => [...r.querySelectorAll(s)];
  const root = document.documentElement;
  const dark = () => (root.dataset.theme || (matchMedia("(prefers-color-scheme:dark)").matches ? "dark" : "light")) === "dark";
  const store = value => { try { localStorage.setItem("theme", value); } catch { /* private mode: the choice lasts for this page */ } };
  const here = document.currentScript.src;

  for (const b of $$("[data-scheme]")) {
    const label = () => b.setAttribute("aria-label", dark() ? "Switch to light theme" : "Switch to dark theme");
    b.hidden = false; label();
    b.onclick = () => { root.dataset.theme = dark() ? "light" : "dark"; store(root.dataset.theme); label(); };
  }

  for (const b of $$("[data-copy]")) {
    b.hidden = false;
    b.onclick = async () => {
      const text = $("pre code", b.closest(".run")).textContent.replace(/^\$ /gm, "");
      try { await navigator.clipboard.writeText(text); b.textContent = "Copied"; } catch { b.textContent = "Press Ctrl+C"; }
      setTimeout(() => { b.textContent = "Copy"; }, 1600);
    };
  }

  // ---- search: the Pagefind index is fetched with the first letter, in the packed site the words of all pages ----
  const search = $("#search-form");
  if (search) {
    const q = $("input", search), list = $("#search-results"), status = $("#search-status");
    let engine, turn = 0;
    const entry = hit => {
      const li = document.createElement("li"), a = document.createElement("a"), p = document.createElement("p");
      a.href = hit.url; a.textContent = hit.meta.title; p.className = "soft";
      p.textContent = new DOMParser().parseFromString(hit.excerpt, "text/html").body.textContent; li.append(a, p); return li;
    };
    const packed = () => new Promise((done, failed) => {
      const script = document.createElement("script");
      script.src = new URL("../search/pages.js", here); script.onerror = failed;
      script.onload = () => done({ search: words => {
        const wanted = words.toLowerCase().split(/\s+/), rank = ([, title]) => wanted.filter(word => title.toLowerCase().includes(word)).length;
        const found = window.elviPages.filter(([, title, text]) => wanted.every(word => (title + " " + text).toLowerCase().includes(word)));
        const hit = ([path, title, text]) => {
          const from = Math.max(0, text.toLowerCase().indexOf(wanted[0]) - 60);
          return { data: () => ({ url: new URL("../" + path, here), meta: { title }, excerpt: text.slice(from, from + 200).replaceAll("<", "&lt;") }) };
        };
        return { results: found.sort((a, b) => rank(b) - rank(a)).map(hit) };
      } });
      document.head.append(script);
    });
    const run = async () => {
      const mine = ++turn, words = q.value.trim();
      if (!words) { list.replaceChildren(); status.textContent = ""; return; }
      engine ||= await (location.protocol === "file:" ? packed() : import(new URL("../pagefind/pagefind.js", here)).catch(packed));
      const { results } = await engine.search(words), hits = await Promise.all(results.slice(0, 12).map(r => r.data()));
      if (mine !== turn) return;
      list.replaceChildren(...hits.map(entry));
      status.textContent = results.length ? `${results.length} pages found` : "No page has these words.";
    };
    search.hidden = false;
    search.onsubmit = event => event.preventDefault();
    q.oninput = run; q.value = new URLSearchParams(location.search).get("q") || ""; run();
  }
})();
