// The explorer of a comparison: one plot of all files, filters, a table that sorts, and what is known of the chosen one.
(() => {
  const data = JSON.parse(document.getElementById("rows").textContent)
  const rows = data.rows, root = document.getElementById("explorer"), one = id => document.getElementById(id)
  const svg = one("plot"), tip = one("tip"), panel = one("chosen"), said = one("said"), NS = "http://www.w3.org/2000/svg"
  const body = document.querySelector("#table tbody"), lines = [...body.rows]
  const axes = { ms: ["latency, ms a call", row => row.ms], kib: ["file, KiB", row => [row.kib, row.kib, row.kib]],
    packed: ["packed file, KiB", row => row.packed === null ? null : [row.packed, row.packed, row.packed]] }
  let axis = "ms", zoom = null, chosen = -1, places = []
  const wanted = new Set()
  const make = (name, attributes, text) => {
    const node = document.createElementNS(NS, name)
    for (const key in attributes) node.setAttribute(key, attributes[key])
    if (text !== undefined) node.textContent = text
    return node
  }
  const element = (name, text, kind) => {
    const node = document.createElement(name)
    if (text !== undefined) node.textContent = text
    if (kind) node.className = kind
    return node
  }
  const visible = () => rows.map((row, index) => index).filter(index => {
    const row = rows[index], text = one("find").value.trim().toLowerCase()
    if (row.reference) return true
    if (one("front").checked && !row.best) return false
    return (!text || row.name.toLowerCase().includes(text)) && [...wanted].every(stage => row.stages.includes(stage))
  })
  const short = value => Number(value.toPrecision(3)).toString()
  const steps = (low, high, count) => {
    const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw)), found = []
    const size = power * [1, 2, 5, 10].find(each => each * power >= raw)
    for (let at = Math.ceil(low / size) * size; at <= high + size * 1e-9; at += size) found.push(Math.abs(at) < size * 1e-9 ? 0 : at)
    return found
  }
  const powers = (low, high, count) => {
    const found = []
    for (let power = Math.floor(low); power <= high; power++)
      for (const each of [1, 2, 5]) if (Math.log10(each) + power >= low && Math.log10(each) + power <= high) found.push(Math.log10(each) + power)
    return found.length < 2 ? steps(low, high, count) : found.length <= count + 1 ? found : found.filter(at => Math.abs(at - Math.round(at)) < 1e-9)
  }

  function draw() {
    const shown = visible().filter(index => axes[axis][1](rows[index]) !== null)
    const W = Math.max(280, svg.parentNode.clientWidth), H = Math.round(Math.min(460, Math.max(300, W * 0.55)))
    const box = { left: 58, right: W - 14, top: 14, bottom: H - 46 }
    svg.setAttribute("viewBox", `0 0 ${W} ${H}`)
    svg.setAttribute("height", H)
    svg.replaceChildren()
    places = []
    if (!shown.length) return
    const spans = shown.map(index => axes[axis][1](rows[index])), lows = spans.map(s => s[1]), highs = spans.map(s => s[2])
    const least = Math.min(...lows), most = Math.max(...highs), log = least > 0 && most / least > 6
    const to = value => log ? Math.log10(Math.max(value, least / 10)) : value, from = value => log ? 10 ** value : value
    const floor = Math.min(...shown.map(i => rows[i].score[1])), ceiling = Math.max(...shown.map(i => rows[i].score[2]))
    const pad = 0.1 * (ceiling - floor) || Math.abs(ceiling) * 0.05 || 1
    const gap = 0.06 * (to(most) - to(least)) || Math.abs(to(most)) * 0.1 || 1
    const whole = { x: [log ? to(least) - gap : Math.min(to(least) - gap, Math.max(0, to(least) - gap)), to(most) + gap], y: [floor - pad, ceiling + pad] }
    const view = zoom || whole
    const across = value => box.left + (to(value) - view.x[0]) / (view.x[1] - view.x[0]) * (box.right - box.left)
    const up = value => {
      const part = (value - view.y[0]) / (view.y[1] - view.y[0])
      return box.bottom - (data.up ? part : 1 - part) * (box.bottom - box.top)
    }
    svg.view = { whole, view, box }
    const clip = make("clipPath", { id: "inside" })
    clip.append(make("rect", { x: box.left, y: box.top, width: box.right - box.left, height: box.bottom - box.top }))
    svg.append(clip)
    const far = W < 500 ? 70 : 90
    for (const value of (log ? powers : steps)(view.x[0], view.x[1], Math.max(2, Math.floor((box.right - box.left) / far)))) {
      const x = box.left + (value - view.x[0]) / (view.x[1] - view.x[0]) * (box.right - box.left)
      svg.append(make("line", { class: "plot-grid", x1: x, x2: x, y1: box.top, y2: box.bottom }),
        make("text", { class: "plot-tick", x, y: box.bottom + 17, "text-anchor": "middle" }, short(from(value))))
    }
    for (const value of steps(view.y[0], view.y[1], 5)) {
      svg.append(make("line", { class: "plot-grid", x1: box.left, x2: box.right, y1: up(value), y2: up(value) }),
        make("text", { class: "plot-tick", x: box.left - 7, y: up(value) + 4, "text-anchor": "end" }, short(value)))
    }
    svg.append(make("text", { class: "plot-axis", x: (box.left + box.right) / 2, y: box.bottom + 38, "text-anchor": "middle" },
      `${axes[axis][0]}${log ? ", log scale" : ""}`))
    const inner = make("g", { "clip-path": "url(#inside)" })
    svg.append(inner)
    places = shown.map(index => {
      const row = rows[index], span = axes[axis][1](row)
      return { index, row, x: across(span[0]), y: up(row.score[0]), x1: across(span[1]), x2: across(span[2]), y1: up(row.score[1]), y2: up(row.score[2]) }
    })
    let best = Infinity, path = ""
    for (const place of places.filter(place => !place.row.control).sort((a, b) => a.x - b.x || a.y - b.y)) {
      if (place.y >= best) continue
      path += path ? `H${place.x}V${place.y}` : `M${place.x} ${box.bottom}V${place.y}`
      best = place.y
    }
    if (path) inner.append(make("path", { class: "plot-front", d: `${path}H${box.right}` }))
    const few = places.length <= 40
    for (const place of places) {
      if (few || place.row.best || place.index === chosen)
        for (const d of [`M${place.x1} ${place.y}H${place.x2}`, `M${place.x} ${place.y1}V${place.y2}`]) inner.append(make("path", { class: "plot-whisker", d }))
    }
    for (const place of places) {
      const kind = place.row.best ? "plot-best" : place.row.control ? "plot-control" : "plot-other"
      inner.append(make("circle", { class: `${kind}${place.index === chosen ? " plot-chosen" : ""}`, cx: place.x, cy: place.y, r: few ? 5 : 4 }))
    }
    label(inner, box, few)
  }

  function label(inner, box, few) {
    const meets = (a, b) => a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3]
    const solid = places.map(p => [p.x - 6, p.y - 6, p.x + 6, p.y + 6])
    if (few) places.forEach(p => solid.push([p.x - 2, Math.min(p.y1, p.y2), p.x + 2, Math.max(p.y1, p.y2)], [p.x1, p.y - 2, p.x2, p.y + 2]))
    const named = places.filter(p => p.row.best || p.row.reference || few)
    for (const place of named.sort((a, b) => b.row.best - a.row.best)) {
      // Of points side by side the upper one has its name above, or one reads the other's.
      const beside = named.filter(p => p !== place && Math.abs(p.x - place.x) < 24 && Math.abs(p.y - place.y) < 24)
      const text = place.row.name.length > 26 ? `${place.row.name.slice(0, 25)}…` : place.row.name, wide = text.length * 6.8 + 4
      for (const [dx, dy, anchor] of [[9, -7, "start"], [9, 16, "start"], [-9, -7, "end"], [-9, 16, "end"], [14, 30, "start"], [14, -21, "start"], [-14, 30, "end"]]) {
        if (beside.some(p => (p.y - place.y) * dy > 0)) continue
        const left = anchor === "start" ? place.x + dx : place.x + dx - wide, area = [left, place.y + dy - 12, left + wide, place.y + dy + 4]
        if (area[0] < box.left || area[2] > box.right || area[1] < box.top || area[3] > box.bottom || solid.some(other => meets(area, other))) continue
        solid.push(area)
        inner.append(make("text", { class: "plot-label", x: place.x + dx, y: place.y + dy, "text-anchor": anchor }, text))
        break
      }
    }
  }

  function told(row) { return row.cells.map(([name, text]) => `${name} ${text}`).join(", ") }

  function point(place) {
    tip.hidden = !place
    if (!place) return
    tip.replaceChildren(element("b", place.row.name), element("span", told(place.row)))
    const scale = svg.getBoundingClientRect().width / svg.viewBox.baseVal.width, width = svg.parentNode.clientWidth
    tip.style.left = `${Math.max(0, Math.min(place.x * scale + 12, width - tip.offsetWidth - 4))}px`
    tip.style.top = `${place.y * scale + 14}px`
  }

  function choose(index, scroll) {
    chosen = index
    const row = rows[index]
    panel.hidden = false
    const head = element("h3", row.name), facts = element("p", told(row), "muted small")
    panel.replaceChildren(head, facts)
    if (row.report) {
      const link = element("a", "its report: waterfall, what went, the file")
      link.href = row.report
      const line = element("p")
      line.append(link)
      panel.append(line)
    }
    if (row.steps.length) {
      const most = Math.max(...row.steps.map(step => step[1])), list = element("ol", undefined, "fall")
      for (const [name, ms, kib, kept] of row.steps) {
        const item = element("li", undefined, kept ? "" : "undone"), bar = element("i")
        bar.style.width = `${Math.max(1, 100 * ms / most)}%`
        item.append(element("span", kept ? name : `${name}, rolled back`), bar, element("small", `${short(ms)} ms, ${short(kib)} KiB`))
        list.append(item)
      }
      panel.append(list)
    }
    if (row.recipe) {
      panel.append(element("pre", row.recipe))
      panel.lastChild.tabIndex = 0
    }
    said.textContent = `${row.name}: ${told(row)}`
    lines.forEach(line => line.classList.toggle("ships", Number(line.dataset.row) === index))
    draw()
    if (scroll) panel.scrollIntoView({ block: "nearest" })
  }

  function filter() {
    const shown = new Set(visible())
    lines.forEach(line => { line.hidden = !shown.has(Number(line.dataset.row)) })
    one("count").textContent = `${shown.size} of ${rows.length} rows`
    draw()
  }

  function near(event) {
    const rect = svg.getBoundingClientRect(), scale = svg.viewBox.baseVal.width / rect.width
    const x = (event.clientX - rect.left) * scale, y = (event.clientY - rect.top) * scale
    const found = places.map(place => [Math.hypot(place.x - x, place.y - y), place]).sort((a, b) => a[0] - b[0])[0]
    return found && found[0] < 18 ? found[1] : null
  }

  function zoomed(factor, px = 0.5, py = 0.5) {
    const { view } = svg.view, next = {}
    if (!data.up) py = 1 - py
    for (const [key, part] of [["x", px], ["y", 1 - py]]) {
      const [low, high] = view[key], at = low + part * (high - low)
      next[key] = [at - (at - low) * factor, at + (high - at) * factor]
    }
    zoom = next
    draw()
  }

  function moved(dx, dy) {
    const { view, box } = svg.view, across = (view.x[1] - view.x[0]) * dx / (box.right - box.left)
    const along = (view.y[1] - view.y[0]) * dy / (box.bottom - box.top) * (data.up ? 1 : -1)
    zoom = { x: view.x.map(value => value - across), y: view.y.map(value => value + along) }
    draw()
  }

  let held = null
  svg.addEventListener("pointermove", event => {
    if (held) {
      const rect = svg.getBoundingClientRect(), scale = svg.viewBox.baseVal.width / rect.width
      const dx = (event.clientX - held.x) * scale, dy = (event.clientY - held.y) * scale
      if (held.moved || Math.hypot(dx, dy) > 5) {
        moved(dx, dy)
        held = { x: event.clientX, y: event.clientY, moved: true }
      }
      return
    }
    point(near(event))
  })
  svg.addEventListener("pointerdown", event => { held = { x: event.clientX, y: event.clientY, moved: false } })
  window.addEventListener("pointerup", event => {
    const was = held
    held = null
    if (!was || was.moved || !svg.contains(event.target)) return
    const place = near(event)
    if (place) choose(place.index, true)
  })
  svg.addEventListener("pointerleave", () => point(null))
  svg.addEventListener("wheel", event => {
    event.preventDefault()
    const rect = svg.getBoundingClientRect(), { box } = svg.view, scale = svg.viewBox.baseVal.width / rect.width
    zoomed(event.deltaY > 0 ? 1.2 : 1 / 1.2, ((event.clientX - rect.left) * scale - box.left) / (box.right - box.left),
      ((event.clientY - rect.top) * scale - box.top) / (box.bottom - box.top))
  }, { passive: false })
  svg.addEventListener("dblclick", () => { zoom = null; draw() })
  svg.addEventListener("keydown", event => {
    const order = [...places].sort((a, b) => a.x - b.x || a.y - b.y), at = order.findIndex(place => place.index === chosen)
    const keys = { "+": () => zoomed(1 / 1.3), "=": () => zoomed(1 / 1.3), "-": () => zoomed(1.3), "0": () => { zoom = null; draw() },
      ArrowRight: () => choose(order[Math.min(order.length - 1, at + 1)].index), ArrowLeft: () => choose(order[Math.max(0, at - 1)].index),
      Home: () => choose(order[0].index), End: () => choose(order[order.length - 1].index), Enter: () => panel.scrollIntoView({ block: "nearest" }) }
    if (!order.length || !keys[event.key]) return
    event.preventDefault()
    keys[event.key]()
    point(places.find(place => place.index === chosen))
  })
  one("nearer").addEventListener("click", () => zoomed(1 / 1.4))
  one("farther").addEventListener("click", () => zoomed(1.4))
  one("all").addEventListener("click", () => { zoom = null; draw() })
  one("axis").addEventListener("change", event => { axis = event.target.value; zoom = null; draw() })
  one("find").addEventListener("input", filter)
  one("front").addEventListener("change", filter)
  for (const stage of [...new Set(rows.flatMap(row => row.stages))].sort()) {
    const button = element("button", stage.replaceAll("_", " "), "filter")
    button.type = "button"
    button.setAttribute("aria-pressed", "false")
    button.addEventListener("click", () => {
      if (!wanted.delete(stage)) wanted.add(stage)
      button.setAttribute("aria-pressed", String(wanted.has(stage)))
      filter()
    })
    one("stages").append(button)
  }
  lines.forEach(line => line.addEventListener("click", event => { if (!event.target.closest("a")) choose(Number(line.dataset.row), false) }))
  document.querySelectorAll("#table th[data-key]").forEach(head => {
    const button = element("button", head.textContent, "sort")
    button.type = "button"
    head.replaceChildren(button)
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending"
      document.querySelectorAll("#table th[aria-sort]").forEach(other => other.removeAttribute("aria-sort"))
      head.setAttribute("aria-sort", up ? "ascending" : "descending")
      const value = line => rows[Number(line.dataset.row)].sort[head.dataset.key]
      lines.sort((a, b) => {
        const [x, y] = [value(a), value(b)]
        if (x === y || (x === null && y === null)) return 0
        if (x === null || y === null) return x === null ? 1 : -1
        return (x < y ? -1 : 1) * (up ? 1 : -1)
      })
      body.append(...lines)
    })
  })
  new ResizeObserver(draw).observe(svg.parentNode)
  root.hidden = false
  document.querySelectorAll(".still").forEach(node => { node.hidden = true })
  filter()
})()
