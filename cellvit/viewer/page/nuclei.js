// @ts-check
/** Which tiles of nuclei a view shows, how they are drawn, and what the page can tell from them. */
import { getBytes, isStatic, slidePath } from "./api.js";
import { readDensity, readOutlines, readPoints } from "./binary.js";
import { classTexture, densityPicture, largestCount, rampTexture, shades } from "./color.js";
import { areaOf, inside, intersection, scaleOf, tilesIn, toSlide, viewBox, zoomFor } from "./geometry.js";
import { NucleiLayer } from "./layer.js";
import { filterOf } from "./state.js";
import { TileStore } from "./store.js";

/** @typedef {import("./layer.js").DrawnTile} DrawnTile */
/** @typedef {import("./layer.js").Screen} Screen */
/** @typedef {import("./types.js").Slide} Slide */
/** @typedef {import("./types.js").Point} Point */
/** @typedef {import("./types.js").Box} Box */

/** Most points that are drawn; where more are expected in view, their density is. */
export const MOST_POINTS = 90_000;
/** Width of a nucleus, µm, and the CSS pixels from which on it has an outline. */
const NUCLEUS_UM = 8;
const OUTLINE_PIXELS = 9;
/** µm per level-0 pixel of slides that state none: that of a magnification of 40. */
const USUAL_MPP = 0.25;

/** About how wide tiles are on the screen, CSS pixels: small, so that few points outside of the view are drawn. */
const TILE_PIXELS = 320;
/** What is finer than this in outlines is not drawn, CSS pixels. */
const DETAIL_PIXELS = 1.2;

/** Colour indices of the tissue and the region. */
const LAYER_TYPES = { tissue: 254, region: 253 };

/**
 * Return how nuclei are best drawn.
 *
 * @param {Slide} slide
 * @param {import("./state.js").ViewState} state
 * @param {number} scale  CSS pixels per level-0 pixel
 * @param {Box} view
 * @returns {DrawnTile["kind"]}
 */
export function drawKind(slide, state, scale, view) {
  const info = slide.nuclei;
  if (!info) return "points";
  const outlined = info.outlines && scale * (NUCLEUS_UM / (slide.mpp?.[0] ?? USUAL_MPP)) >= OUTLINE_PIXELS;
  const all = areaOf(info.bounds);
  const expected = all > 0 ? (info.count * areaOf(intersection(view, info.bounds))) / all : info.count;
  const fits = expected <= MOST_POINTS;
  if (state.draw === "density") return "density";
  if (state.draw === "outlines" && info.outlines && expected <= MOST_POINTS / 4) return "outlines";
  if (state.draw !== "points" && outlined && fits) return "outlines";
  return fits || (state.draw === "points" && expected <= 4 * MOST_POINTS) ? "points" : "density";
}

/** The nuclei of a slide on their canvas. */
export class NucleiView {
  /**
   * @param {HTMLCanvasElement} canvas
   * @param {Slide} slide
   * @param {import("./state.js").ViewState} state
   * @param {{changed: () => void, failed: (error: unknown) => void}} events
   */
  constructor(canvas, slide, state, events) {
    this.slide = slide;
    this.state = state;
    this.events = events;
    this.layer = new NucleiLayer(canvas);
    this.numbers = rampTexture();
    /** @type {Uint8Array} colours of types, alpha 0 where hidden */
    this.types = new Uint8Array(0);
    this.typesKey = "";
    /** @type {WeakMap<import("./binary.js").DensityTile, number>} largest count of a tile in the types shown */
    this.largest = new WeakMap();
    /** @type {TileStore<DrawnTile>} */
    this.store = new TileStore({
      load: (request, signal) => this.load(request, signal),
      release: (tile) => this.layer.release(tile),
      size: NucleiLayer.bytes,
      changed: () => this.arrived(),
      failed: events.failed,
      limit: 96 << 20,
      atOnce: 6,
    });
    /** @type {import("./store.js").TileRequest[]} what is on the screen */
    this.shown = [];
    /** @type {DrawnTile["kind"]} */
    this.kind = "points";
    /** @type {Map<number, string>} class of each labelled nucleus, by row */
    this.labels = new Map();
    /** @type {Map<string, number>} colour of each label */
    this.labelColors = new Map();
    /** @type {DrawnTile | null} */
    this.marks = null;
    /** @type {Map<string, DrawnTile>} */
    this.layers = new Map();
    this.revision = slide.revision;
    this.loaded = 0;
    this.recolor();
    this.makeLayers();
  }

  /** Return what number is shown, or null for types. */
  get column() {
    return this.slide.nuclei?.columns.find(({ name }) => name === this.state.color) ?? null;
  }

  /** Return the lowest and the highest number of the colours. */
  get range() {
    const column = this.column;
    if (!column) return [0, 1];
    if (column.kind === "category") return [0, Math.max(1, (column.values ?? []).length - 1)];
    return this.state.range ?? [column.low, column.high];
  }

  /** Take over the colours that the state tells. */
  recolor() {
    const classes = this.slide.nuclei?.classes ?? [];
    const entries = [...classes.map(({ id, color }) => ({ id, color }))];
    entries.push({ id: LAYER_TYPES.tissue, color: "#2f7d32" }, { id: LAYER_TYPES.region, color: "#1b1b1f" });
    this.types = classTexture(entries, new Set(this.state.hidden));
    this.typesKey = this.types.join("");
    this.largest = new WeakMap();
    const column = this.column;
    const numbers = column?.kind === "category" ? categoryTexture(classes, column.values ?? []) : this.numbers;
    this.layer.setColors(this.types, numbers, column !== null);
  }

  /** Put tissue and region on the graphics card. */
  makeLayers() {
    for (const { name, polygons } of this.slide.layers) {
      const start = new Uint32Array(polygons.length + 1);
      polygons.forEach((polygon, i) => (start[i + 1] = start[i] + polygon.length));
      const xy = new Float32Array(polygons.flat(2));
      const type = new Uint8Array(polygons.length).fill(LAYER_TYPES[/** @type {"tissue"} */ (name)] ?? 0);
      const row = new Uint32Array(polygons.length);
      const data = { count: polygons.length, row, start, xy, value: null, type };
      this.layers.set(name, this.layer.outlineTile(data, [0, 0], this.slide.width, 0));
    }
  }

  /**
   * Return a tile that was asked for.
   *
   * @param {import("./store.js").TileRequest} request
   * @param {AbortSignal} signal
   * @returns {Promise<DrawnTile>}
   */
  async load({ kind, tile: { z, x, y } }, signal) {
    const info = /** @type {import("./types.js").NucleiInfo} */ (this.slide.nuclei);
    const column = kind === "density" ? null : this.column;
    const path = slidePath(this.slide.id, `${kind}/${z}/${x}_${y}`);
    const buffer = await getBytes(path, this.query(kind), signal);
    const width = info.tile_base / 2 ** z;
    /** @type {[number, number]} */
    const corner = [x * width, y * width];
    this.loaded += 1;
    if (kind === "density") return this.layer.densityTile(readDensity(buffer), corner, width);
    if (kind === "points") return this.layer.pointTile(readPoints(buffer, column !== null), corner, width);
    return this.layer.outlineTile(readOutlines(buffer, column !== null), corner, width, (DETAIL_PIXELS * width) / TILE_PIXELS);
  }

  /**
   * Return what a tile is asked for with.
   *
   * @param {string} kind
   * @returns {URLSearchParams}
   */
  query(kind) {
    const query = new URLSearchParams(isStatic ? {} : filterOf(this.state));
    if (this.column && kind !== "density") query.set("column", this.column.name);
    query.set("revision", String(this.revision));
    return query;
  }

  /**
   * Decide which tiles a view needs and ask for them.
   *
   * @param {Screen} screen
   */
  plan(screen) {
    const info = this.slide.nuclei;
    if (!info || this.state.off.includes("nuclei")) {
      this.store.want([]);
      this.shown = [];
      return;
    }
    const scale = scaleOf(screen.map);
    const view = viewBox(screen.map, screen.width, screen.height);
    this.kind = drawKind(this.slide, this.state, scale, view);
    const zoom = zoomFor(scale, info.tile_base, info.max_zoom, TILE_PIXELS);
    const query = this.query(this.kind).toString();
    const tiles = tilesIn(intersection(view, info.bounds), info.tile_base, zoom);
    const kind = this.kind;
    this.store.want(tiles.map((tile) => ({ key: `${kind}/${zoom}/${tile.x}_${tile.y}?${query}`, kind, tile })));
    this.settle();
  }

  /** Show what is wanted; what was shown stays until that is complete, so that nothing flashes. */
  settle() {
    const { wanted } = this.store;
    /** @param {import("./store.js").TileRequest | undefined} request */
    const group = (request) => request?.key.replace(/\d+_\d+\?/, "?");
    const same = !wanted.length || !this.shown.length || group(wanted[0]) === group(this.shown[0]);
    if (same || this.store.complete) this.shown = wanted;
    this.makeMarks();
  }

  /** Take in a tile that came. */
  arrived() {
    this.settle();
    this.events.changed();
  }

  /** Return the tiles on the screen that are there. */
  get tiles() {
    return this.shown.map(({ key }) => this.store.get(key)).filter((tile) => tile !== undefined);
  }

  /** Return whether everything that the view needs is on the screen. */
  get settled() {
    return this.store.complete && this.shown === this.store.wanted;
  }

  /**
   * Draw everything.
   *
   * @param {Screen} screen
   */
  draw(screen) {
    const { layer, state } = this;
    layer.begin(screen);
    const scale = scaleOf(screen.map);
    for (const [name, tile] of this.layers) {
      if (!state.off.includes(name)) {
        const byNumber = layer.byNumber;
        layer.byNumber = false;
        layer.drawOutlines(screen, tile, 1.8);
        layer.byNumber = byNumber;
      }
    }
    const tiles = this.tiles;
    this.paint(tiles);
    const nucleus = scale * (NUCLEUS_UM / (this.slide.mpp?.[0] ?? USUAL_MPP));
    for (const tile of tiles) {
      if (tile.kind === "density") layer.drawPicture(screen, tile);
      else if (tile.kind === "points") layer.drawPoints(screen, tile, pointSize(nucleus));
      else layer.drawOutlines(screen, tile, Math.min(2.6, Math.max(1, nucleus / 12)));
    }
    if (this.marks) layer.drawPoints(screen, this.marks, Math.min(16, Math.max(7, nucleus * 0.5)), true);
  }

  /**
   * Give tiles the shades or the picture that the state asks for, where they have others.
   *
   * @param {DrawnTile[]} tiles
   */
  paint(tiles) {
    const [low, high] = this.range;
    const column = this.column;
    let most = 1;
    for (const { density } of tiles) {
      if (!density) continue;
      const count = this.largest.get(density) ?? largestCount(density, this.types);
      this.largest.set(density, count);
      most = Math.max(most, count);
    }
    most = 2 ** Math.ceil(Math.log2(most)); // so that a step aside does not change all shades
    const painted = column ? `${column.name},${low},${high}` : "";
    for (const tile of tiles) {
      if (tile.density) {
        const wanted = `${Boolean(column)},${most},${this.typesKey}`;
        if (tile.painted === wanted) continue;
        this.layer.setPicture(tile, densityPicture(tile.density, this.types, column ? this.numbers : null, most), wanted);
      } else if (tile.painted !== painted) {
        this.layer.setShades(tile, tile.value && column ? shades(tile.value, low, high) : null, painted);
      }
    }
  }

  /**
   * Take over which nuclei are labelled.
   *
   * @param {Map<number, string>} labels
   * @param {import("./types.js").LabelClass[]} classes
   */
  setLabels(labels, classes) {
    this.labels = labels;
    this.labelColors = new Map(classes.map(({ name, color }) => [name, parseInt(color.slice(1), 16)]));
    this.makeMarks();
    this.events.changed();
  }

  /** Make the marks of labelled nuclei that are on the screen. */
  makeMarks() {
    if (this.marks) this.layer.release(this.marks);
    this.marks = null;
    if (!this.labels.size || this.kind === "density") return;
    /** @type {{x: number, y: number, color: number}[]} */
    const found = [];
    for (const tile of this.tiles) {
      for (let i = 0; i < tile.count; i++) {
        const name = this.labels.get(tile.row[i]);
        if (name === undefined) continue;
        found.push({ x: tile.corner[0] + tile.x[i], y: tile.corner[1] + tile.y[i], color: this.labelColors.get(name) ?? 0x808080 });
      }
    }
    if (!found.length) return;
    const corner = /** @type {[number, number]} */ ([found[0].x, found[0].y]);
    this.marks = this.layer.markTile(found, corner);
  }

  /**
   * Return the nucleus on the screen whose middle is nearest to a point, within a distance.
   *
   * @param {number} x
   * @param {number} y
   * @param {number} radius
   * @returns {{row: number, x: number, y: number, type: number, distance: number} | null}
   */
  nearest(x, y, radius) {
    let best = null;
    let least = radius;
    for (const tile of this.tiles) {
      const [left, top] = [x - tile.corner[0], y - tile.corner[1]];
      for (let i = 0; i < tile.count; i++) {
        const distance = Math.hypot(tile.x[i] - left, tile.y[i] - top);
        if (distance > least || this.types[4 * tile.type[i] + 3] === 0) continue;
        least = distance;
        best = { row: tile.row[i], x: tile.corner[0] + tile.x[i], y: tile.corner[1] + tile.y[i], type: tile.type[i], distance };
      }
    }
    return best;
  }

  /**
   * Return how many nuclei of each type are in view, from the tiles; what a static share does without its server.
   *
   * @param {Screen} screen
   * @returns {{total: number, classes: Record<string, number>}}
   */
  count(screen) {
    /** @type {Record<string, number>} */
    const classes = {};
    let total = 0;
    /** @param {number} id @param {number} number */
    const add = (id, number) => {
      if (this.types[4 * id + 3] === 0) return;
      classes[id] = (classes[id] ?? 0) + number;
      total += number;
    };
    const view = /** @type {Point[]} */ (
      [[0, 0], [screen.width, 0], [screen.width, screen.height], [0, screen.height]].map(([x, y]) => toSlide(screen.map, x, y))
    );
    for (const tile of this.tiles) {
      for (let i = 0; i < tile.count; i++) {
        if (inside(view, tile.corner[0] + tile.x[i], tile.corner[1] + tile.y[i])) add(tile.type[i], 1);
      }
      if (tile.density) countCells(tile, view, add);
    }
    return { total, classes };
  }

  /** Take over a new state of the slide: other types, other colours. */
  refresh() {
    this.revision = this.slide.revision;
    this.recolor();
    this.store.retry();
  }

  /** Free everything. */
  destroy() {
    this.store.clear();
    for (const tile of this.layers.values()) this.layer.release(tile);
    if (this.marks) this.layer.release(this.marks);
    this.layer.gl.getExtension("WEBGL_lose_context")?.loseContext();
  }
}

/**
 * Return the colours of categories: those of types of the same name, else those of the types in order.
 *
 * @param {import("./types.js").NucleusType[]} classes
 * @param {string[]} values
 * @returns {Uint8Array}
 */
function categoryTexture(classes, values) {
  const places = values.length > 1 ? 254 / (values.length - 1) : 0;
  const entries = values.map((name, i) => ({ id: Math.round(i * places), color: categoryColor(classes, name, i) }));
  return classTexture(entries, new Set());
}

/**
 * Return the colour of a category.
 *
 * @param {import("./types.js").NucleusType[]} classes
 * @param {string} name
 * @param {number} index
 * @returns {string}
 */
export function categoryColor(classes, name, index) {
  const typed = classes.filter(({ id }) => id > 0);
  const same = classes.find((entry) => entry.name === name);
  return same?.color ?? typed[index % Math.max(1, typed.length)]?.color ?? "#808080";
}

/**
 * Return the width of a point, CSS pixels.
 *
 * @param {number} nucleus  width of a nucleus on the screen
 * @returns {number}
 */
function pointSize(nucleus) {
  return Math.min(10, Math.max(2, nucleus * 0.85));
}

/**
 * Add the counts of the cells whose middle is in view.
 *
 * @param {DrawnTile} tile
 * @param {Point[]} view
 * @param {(id: number, number: number) => void} add
 */
function countCells(tile, view, add) {
  const { density } = tile;
  if (!density) return;
  const { grid } = density;
  const step = tile.width / grid;
  for (let cell = 0; cell < grid * grid; cell++) {
    const x = tile.corner[0] + ((cell % grid) + 0.5) * step;
    const y = tile.corner[1] + (Math.floor(cell / grid) + 0.5) * step;
    if (!inside(view, x, y)) continue;
    for (let id = 0; id < density.classes; id++) add(id, density.count[id * grid * grid + cell]);
  }
}
