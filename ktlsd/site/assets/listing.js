"use strict";
(() => {
  // Of a longer list only the groups of rows near the window stay in the document: a browser is slow with all of them.
  const LONG_LIST = 2000;
  const NEAR_THE_WINDOW = "1500px";
  const table = document.querySelector("table");
  const search = document.getElementById("search");
  const status = document.getElementById("status");
  const preview = document.querySelector("dialog");
  const heads = [...table.querySelectorAll("th")];
  const summary = status.textContent;
  const order = new Intl.Collator(undefined, { numeric: true });
  const comparisons = {
    name: (a, b) => order.compare(a.name, b.name),
    size: (a, b) => a.size - b.size,
    date: (a, b) => (a.date < b.date ? -1 : a.date > b.date ? 1 : 0),
  };
  const link = (element) => element.querySelector("a");
  const rowsOf = new WeakMap();
  let groups = [...table.querySelectorAll("tbody:not(#up)")];
  const rowsInGroup = groups[0].rows.length;
  const items = groups.flatMap((group) => Array.from(group.rows, read));
  let shown = items;

  function read(row) {
    const [name, size, date] = row.cells;
    return {
      row,
      name: name.textContent,
      words: name.textContent.toLowerCase(),
      folder: link(name).getAttribute("href").endsWith("/"),
      size: Number(size.firstElementChild?.value ?? 0),
      date: date.firstElementChild.dateTime,
    };
  }

  const observer = new IntersectionObserver(
    (changes) => {
      for (const { target, isIntersecting } of changes) target.replaceChildren(...(isIntersecting ? rowsOf.get(target) : []));
    },
    { rootMargin: NEAR_THE_WINDOW },
  );

  function draw() {
    observer.disconnect();
    for (const group of groups) group.remove();
    groups = [];
    for (let first = 0; first < shown.length; first += rowsInGroup) {
      const rows = shown.slice(first, first + rowsInGroup).map((item) => item.row);
      const group = document.createElement("tbody");
      group.style.setProperty("--rows", rows.length);
      rowsOf.set(group, rows);
      groups.push(group);
      if (shown.length <= LONG_LIST) group.append(...rows);
    }
    table.append(...groups);
    if (shown.length > LONG_LIST) for (const group of groups) observer.observe(group);
  }

  function filter() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    shown = items.filter((item) => words.every((word) => item.words.includes(word)));
    status.textContent = words.length ? `${shown.length} of ${items.length} match` : summary;
    draw();
  }

  function sort(head) {
    const { key, first } = head.dataset;
    const was = head.getAttribute("aria-sort");
    const way = was === null ? first : was === "ascending" ? "descending" : "ascending";
    const sign = way === "ascending" ? 1 : -1;
    items.sort(
      (a, b) =>
        b.folder - a.folder ||
        (a.folder && key === "size" ? 0 : sign * comparisons[key](a, b)) ||
        order.compare(a.name, b.name),
    );
    const query = (name, ascending) => `?sort=${name}&order=${ascending ? "asc" : "desc"}`;
    for (const other of heads) {
      other.removeAttribute("aria-sort");
      link(other).search = query(other.dataset.key, other.dataset.first === "ascending");
    }
    head.setAttribute("aria-sort", way);
    link(head).search = query(key, way !== "ascending");
    history.replaceState(null, "", query(key, way === "ascending"));
    filter();
  }

  let previewed;
  function show(item) {
    const target = link(preview);
    previewed = item;
    target.href = link(item.row).href;
    target.textContent = item.name;
    preview.querySelector("img").src = target.href;
    if (!preview.open) preview.showModal();
  }

  function step(distance) {
    const pictures = shown.filter((item) => item.row.querySelector("img"));
    show(pictures[(pictures.indexOf(previewed) + distance + pictures.length) % pictures.length]);
  }

  const plain = (event) => !(event.ctrlKey || event.metaKey || event.shiftKey || event.altKey);
  table.addEventListener("click", (event) => {
    const { target } = event;
    if (!plain(event)) return;
    if (target.matches("th a")) sort(target.parentElement);
    else if (target.matches("td img")) show(items.find((item) => item.row.contains(target)));
    else return;
    event.preventDefault();
  });
  preview.addEventListener("click", ({ target }) => {
    const { action } = target.dataset;
    if (action === "close") preview.close();
    else if (action) step(Number(action));
  });
  preview.addEventListener("keydown", ({ key }) => {
    if (key === "ArrowLeft") step(-1);
    else if (key === "ArrowRight") step(1);
  });
  search.addEventListener("input", filter);
  search.addEventListener("keydown", ({ key }) => {
    if (key !== "Escape") return;
    search.value = "";
    filter();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "/" || !plain(event) || preview.open || event.target.matches("input")) return;
    event.preventDefault();
    search.focus();
  });
  document.body.classList.add("ready");
  if (search.value) filter();
  else if (items.length > LONG_LIST) draw();
})();
