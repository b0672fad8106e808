"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const main = byId("main"), file = byId("file"), drop = byId("drop"), top = byId("top");
  const boxes = [...document.querySelectorAll("input[name=camera]")];
  const limit = Number(main.dataset.limit), most = Number(main.dataset.most);
  let query = null;      // {data} of a file or {row} of a crop
  let latest = 0;        // number of the newest search: answers to others are dropped
  let running = null;    // what ends the search that is under way
  let timer = 0;
  let fresh = false;     // the query is another one than at the last answer

  function element(name, kind, text) {
    const made = document.createElement(name);
    if (kind) made.className = kind;
    if (text !== undefined) made.textContent = text;
    return made;
  }

  function busy(is) {
    byId("hits").classList.toggle("busy", is);
    byId("hits").setAttribute("aria-busy", String(is));
  }

  function fail(text) {
    busy(false);
    byId("hits").replaceChildren();
    byId("status").textContent = "";
    byId("error").textContent = text;
    byId("error").hidden = false;
    byId("error").scrollIntoView({ block: "nearest" });
  }

  function show(source, caption) {
    const picture = byId("picture");
    if (picture.src.startsWith("blob:")) URL.revokeObjectURL(picture.src);
    picture.src = source;
    byId("caption").textContent = caption;
    byId("asked").hidden = false;
  }

  function card(hit) {
    const item = element("li"), button = element("button", "hit");
    button.type = "button";
    button.title = hit.name;
    const image = element("img");
    image.alt = "";
    image.loading = "lazy";
    image.draggable = false;
    image.addEventListener("error", () => image.replaceWith(
      element("span", "gone", "The file is gone, was changed, or is no image.")));
    image.src = `/crops/${hit.row}`;
    const first = element("span");
    first.append(element("b", "", String(hit.rank)), ` camera ${hit.camera}`);
    button.append(image, first, element("span", "score", `score ${hit.score.toFixed(3)}`));
    if (hit.same !== null) {
      button.append(element("b", hit.same ? "same" : "different",
        hit.same ? "✓ same" : "✗ different"));
    }
    button.append(element("span", "name", hit.name),
      element("span", "again", "Search with this crop"));
    button.addEventListener("click", () => searchWith(hit.row));
    item.append(button);
    return item;
  }

  function searchWith(row) {
    query = { row };
    fresh = true;
    file.value = "";
    show(`/crops/${row}`, "");
    byId("query-title").focus({ preventScroll: true });
    search();
  }

  // of a new query: on a phone what is found lies below the window
  function reveal() {
    const found = byId("found"), first = byId("hits").firstElementChild;
    if (found.getBoundingClientRect().top < 0
        || (first ?? found).getBoundingClientRect().bottom > window.innerHeight) {
      found.scrollIntoView();
    }
  }

  function fill(answer) {
    busy(false);
    byId("hits").replaceChildren(...answer.hits.map(card));
    const count = answer.hits.length, same = answer.hits.filter((hit) => hit.same).length;
    const marked = answer.hits.some((hit) => hit.same !== null)
      ? `, ${same} of them marked as the same` : "";
    byId("status").textContent = `${count} crop${count === 1 ? "" : "s"}${marked} `
      + `(embedding ${answer.embedding_ms} ms, search ${answer.search_ms} ms).`
      + answer.own.map((own) => ` The index has the query's own file, which is left out: camera `
        + `${own.camera}, ${own.name}.`).join("");
    if (answer.query) {
      byId("caption").textContent = `camera ${answer.query.camera}: ${answer.query.name}`;
    }
    if (fresh) reveal();
    fresh = false;
  }

  function address() {
    const values = new URLSearchParams({ top: top.value });
    if (query.row !== undefined) values.set("row", query.row);
    const chosen = boxes.filter((box) => box.checked);
    if (chosen.length < boxes.length) chosen.forEach((box) => values.append("camera", box.value));
    return `/search?${values}`;
  }

  async function search() {
    clearTimeout(timer);
    if (running) running.abort();
    const mine = ++latest;
    byId("error").hidden = true;
    if (query === null) return;
    const wanted = Number(top.value);
    if (!Number.isInteger(wanted) || wanted < 1 || wanted > most) {
      fail(`The number of crops must be from 1 to ${most}.`);
      return;
    }
    if (boxes.length && !boxes.some((box) => box.checked)) {
      fail("No camera is chosen: choose at least one.");
      return;
    }
    busy(true);
    byId("status").textContent = "Searching …";
    running = new AbortController();
    const options = { method: "POST", signal: running.signal };
    if (query.data) {
      options.body = query.data;
      options.headers = { "Content-Type": "application/octet-stream" };
    }
    let response, answer = {};
    try {
      response = await fetch(address(), options);
    } catch {
      if (mine === latest) fail("The server does not answer. Was it stopped? Start it again.");
      return;
    }
    try {
      answer = await response.json();
    } catch {
      answer = { error: `The server's answer cannot be read (${response.status}).` };
    }
    if (mine !== latest) return;
    if (response.ok && answer.hits) fill(answer);
    else fail(answer.error || `The server refused this (${response.status}).`);
  }

  async function take(files) {
    if (running) running.abort();
    const mine = ++latest;
    query = null;
    byId("asked").hidden = true;
    if (!files.length) {
      fail("That was no file: save the picture first, then drop its file.");
      return;
    }
    if (files.length > 1) {
      fail(`Those were ${files.length} files: one image at a time.`);
      return;
    }
    if (files[0].size > limit) {
      fail(`${files[0].name} is larger than ${limit / 2 ** 20} MiB, the most that is taken.`);
      return;
    }
    let data;
    try {
      data = await files[0].arrayBuffer();
    } catch {
      if (mine === latest) fail(`${files[0].name} cannot be read. Is it a folder?`);
      return;
    }
    if (mine !== latest) return;
    if (!data.byteLength) {
      fail(`${files[0].name} is empty.`);
      return;
    }
    query = { data };
    fresh = true;
    show(URL.createObjectURL(files[0]), files[0].name);
    search();
  }

  function later() {
    clearTimeout(timer);
    timer = setTimeout(search, 250);
  }

  byId("picture").addEventListener("error", () => { byId("asked").hidden = true; });
  byId("any").addEventListener(
    "click", () => searchWith(Math.floor(Math.random() * Number(main.dataset.images))));
  file.addEventListener("change", () => { if (file.files.length) take([...file.files]); });
  top.addEventListener("input", later);
  boxes.forEach((box) => box.addEventListener("change", later));
  for (const [id, value] of [["all", true], ["none", false]]) {
    byId(id).addEventListener("click", () => {
      boxes.forEach((box) => { box.checked = value; });
      later();
    });
  }
  // a file that misses the field would replace the page
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    drop.classList.add("over");
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) drop.classList.remove("over");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    file.value = "";
    take([...event.dataTransfer.files]);
  });
})();
