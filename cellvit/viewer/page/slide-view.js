// @ts-check
/** A slide on the screen: OpenSeadragon shows the image, a canvas over it the nuclei, an SVG what is selected or drawn. */
import { isStatic, slidePath } from "./api.js";
import { debounce, el } from "./dom.js";
import { areaOf, intersection, roundLength, scaleOf, thinned, toScreen, toSlide, viewBox } from "./geometry.js";
import { NucleiView } from "./nuclei.js";

/** @typedef {import("./types.js").Point} Point */
/** @typedef {import("./types.js").Slide} Slide */
/** @typedef {import("./layer.js").Screen} Screen */

/**
 * @typedef {object} ViewEvents
 * @property {() => void} moved  the view is another one, and rests
 * @property {(point: Point, radius: number) => void} picked  a place of the slide was clicked
 * @property {(polygon: Point[]) => void} drawn  a lasso or a rectangle was closed
 * @property {(error: unknown) => void} failed
 */

/** What a drag on the picture does. */
export const TOOLS = ["move", "label", "lasso", "region"];

const SVG = "http://www.w3.org/2000/svg";

/**
 * Return a new SVG element.
 *
 * @template {keyof SVGElementTagNameMap} K
 * @param {K} tag
 * @param {Record<string, string>} attributes
 * @returns {SVGElementTagNameMap[K]}
 */
function svgElement(tag, attributes) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

/** The slide, its nuclei, and the tools on them. */
export class SlideView {
  /**
   * @param {HTMLElement} place
   * @param {Slide} slide
   * @param {import("./state.js").ViewState} state
   * @param {ViewEvents} events
   */
  constructor(place, slide, state, events) {
    this.place = place;
    this.slide = slide;
    this.state = state;
    this.events = events;
    this.tool = "move";
    /** @type {Point[]} */
    this.path = [];
    this.viewer = new OpenSeadragon.Viewer({
      element: place,
      tileSources: /** @type {any} */ (tileSource(slide)),
      drawer: "canvas",
      showNavigationControl: false,
      showNavigator: slide.image !== null,
      navigatorPosition: "BOTTOM_RIGHT",
      navigatorSizeRatio: 0.16,
      navigatorRotate: true,
      navigatorAutoFade: false,
      maxZoomPixelRatio: 12,
      minZoomImageRatio: 0.6,
      visibilityRatio: 0.2,
      animationTime: matchMedia("(prefers-reduced-motion: reduce)").matches ? 0 : 0.5,
      imageLoaderLimit: 6,
      imageSmoothingEnabled: true,
      maxImageCacheCount: 120,
      degrees: state.rotation,
      gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: false },
      gestureSettingsTouch: { clickToZoom: false, dblClickToZoom: false, pinchRotate: true },
      gestureSettingsPen: { clickToZoom: false, dblClickToZoom: false },
    });
    this.canvas = el("canvas", { class: "nuclei", "aria-hidden": "true" });
    this.canvas.style.opacity = String(state.opacity);
    this.overlay = svgElement("svg", { class: "overlay", "aria-hidden": "true" });
    this.frame = svgElement("g", {});
    this.sketch = svgElement("polyline", { class: "sketch" });
    this.overlay.append(this.frame, this.sketch);
    this.scaleBar = el("div", { class: "scalebar" });
    this.grid = el("div", { class: "grid", hidden: true });
    this.viewer.canvas.append(this.grid, this.canvas, this.overlay);
    place.append(this.scaleBar);
    /** @type {Screen} */
    this.screen = { map: { a: 1, b: 0, c: 0, d: 1, e: 0, f: 0 }, width: 1, height: 1, ratio: 1 };
    this.nuclei = new NucleiView(this.canvas, slide, state, { changed: () => this.redraw(), failed: events.failed });
    this.waiting = false;
    this.gone = false;
    this.planned = 0;
    /** @type {WebGLSync | null} signals that the last picture of the nuclei is done */
    this.fence = null;
    /** where the slide was in that picture */
    this.drawn = this.screen.map;
    this.drawAgain = 0;
    this.plan = debounce(() => this.gone || this.nuclei.plan(this.screen), 60);
    this.rest = debounce(() => this.gone || this.rested(), 250);
    this.listen();
  }

  /** Listen to the viewer and the pointer. */
  listen() {
    const { viewer } = this;
    viewer.addHandler("open", () => {
      this.goToState();
      this.setImage(!this.state.off.includes("image"));
      this.moved();
    });
    viewer.addHandler("update-viewport", () => this.moved());
    viewer.addHandler("resize", () => requestAnimationFrame(() => this.moved()));
    viewer.addHandler("canvas-key", (event) => {
      event.preventDefaultAction = true; // keys are the page's
    });
    viewer.addHandler("canvas-click", (event) => {
      if (!event.quick) return;
      const [x, y] = toSlide(this.screen.map, event.position.x, event.position.y);
      this.events.picked([x, y], 6 / scaleOf(this.screen.map));
    });
    this.canvas.addEventListener("webglcontextlost", () => {
      const lost = new Error("The graphics card was reset");
      if (!this.gone) this.events.failed(Object.assign(lost, { hint: "Load the page again to see the nuclei" }));
    });
    this.overlay.addEventListener("pointerdown", (event) => this.beginPath(event));
    this.overlay.addEventListener("pointermove", (event) => this.extendPath(event));
    this.overlay.addEventListener("pointerup", (event) => this.closePath(event));
    this.overlay.addEventListener("pointercancel", () => this.dropPath());
  }

  /** Follow the viewport: called for every frame in which it moves. */
  moved() {
    const { viewport } = this.viewer;
    const { width } = this.slide;
    /** @param {number} x @param {number} y */
    const placed = (x, y) => viewport.pixelFromPoint(new OpenSeadragon.Point(x / width, y / width), true);
    const [o, right, down] = [placed(0, 0), placed(width, 0), placed(0, width)];
    const size = viewport.getContainerSize();
    const map = {
      a: (right.x - o.x) / width,
      b: (right.y - o.y) / width,
      c: (down.x - o.x) / width,
      d: (down.y - o.y) / width,
      e: o.x,
      f: o.y,
    };
    const before = JSON.stringify(this.screen);
    this.screen = { map, width: size.x, height: size.y, ratio: Math.min(2, devicePixelRatio) };
    if (JSON.stringify(this.screen) === before) return;
    this.follow();
    this.drawNuclei();
    this.rest();
    const now = performance.now();
    if (now - this.planned > 120) {
      this.planned = now; // also while it moves, so that nuclei come in
      this.nuclei.plan(this.screen);
    } else this.plan();
  }

  /** Draw the nuclei in the next frame, because they or their colours changed. */
  redraw() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      if (!this.gone) this.drawNuclei();
    });
  }

  /**
   * Draw the nuclei; where that takes long, move the last picture of them instead and draw a little later.
   *
   * A graphics card draws every frame. A processor that stands in for one would make the slide stick to the pointer:
   * it draws a fifth of the time, and what it drew moves with the slide in between.
   */
  drawNuclei() {
    if (this.fence || performance.now() < this.drawAgain) {
      this.carry();
      this.redraw();
      return;
    }
    this.nuclei.draw(this.screen);
    const { gl } = this.nuclei.layer;
    this.fence = gl.fenceSync(gl.SYNC_GPU_COMMANDS_COMPLETE, 0);
    gl.flush();
    this.drawn = this.screen.map;
    this.canvas.style.transform = "";
    this.watch(performance.now());
  }

  /**
   * Look in every frame whether the picture of the nuclei is done, and learn how long it took.
   *
   * @param {number} begun
   */
  watch(begun) {
    requestAnimationFrame(() => {
      const { gl } = this.nuclei.layer;
      if (this.fence && !gl.isContextLost() && gl.clientWaitSync(this.fence, 0, 0) === gl.TIMEOUT_EXPIRED) {
        this.watch(begun);
        return;
      }
      gl.deleteSync(this.fence);
      this.fence = null;
      const took = performance.now() - begun - 20; // more than a frame
      this.drawAgain = performance.now() + Math.min(1000, 4 * Math.max(0, took));
    });
  }

  /** Move the picture of the nuclei to where the slide is now. */
  carry() {
    const { map } = this.screen;
    const was = this.drawn;
    const determinant = was.a * was.d - was.b * was.c;
    const a = (map.a * was.d - map.c * was.b) / determinant;
    const b = (map.b * was.d - map.d * was.b) / determinant;
    const c = (map.c * was.a - map.a * was.c) / determinant;
    const d = (map.d * was.a - map.b * was.c) / determinant;
    const [e, f] = [map.e - a * was.e - c * was.f, map.f - b * was.e - d * was.f];
    this.canvas.style.transform = `matrix(${a}, ${b}, ${c}, ${d}, ${e}, ${f})`;
  }

  /** Ask again for what the state now shows, and draw it. */
  update() {
    this.canvas.style.opacity = String(this.state.opacity);
    this.setImage(!this.state.off.includes("image"));
    this.nuclei.recolor();
    this.nuclei.plan(this.screen);
    this.follow();
    this.redraw();
  }

  /** Let grid, selection and scale bar follow the view. */
  follow() {
    const { map } = this.screen;
    this.frame.setAttribute("transform", `matrix(${map.a} ${map.b} ${map.c} ${map.d} ${map.e} ${map.f})`);
    this.drawGrid();
    this.drawScaleBar();
  }

  /** Show lines behind the nuclei where there is no image. */
  drawGrid() {
    const shown = !this.slide.image || this.state.off.includes("image");
    this.grid.hidden = !shown;
    if (!shown) return;
    const { map } = this.screen;
    const step = roundLength(160 / scaleOf(map)) * scaleOf(map);
    this.grid.style.setProperty("--grid", `${step}px`);
    this.grid.style.transform = `translate(${map.e % step}px, ${map.f % step}px)`; // moves without being painted anew
  }

  /** Draw the scale bar, in µm where the slide states its resolution. */
  drawScaleBar() {
    const { mpp } = this.slide;
    const unit = mpp ? mpp[0] : 1;
    const length = roundLength((140 / scaleOf(this.screen.map)) * unit);
    const text = mpp ? (length >= 1000 ? `${length / 1000} mm` : `${length} µm`) : `${length} px`;
    if (this.scaleBar.textContent !== text) this.scaleBar.textContent = text;
    this.scaleBar.style.width = `${(length / unit) * scaleOf(this.screen.map)}px`;
  }

  /** Keep the place in the state and tell that the view rests. */
  rested() {
    const [x, y] = toSlide(this.screen.map, this.screen.width / 2, this.screen.height / 2);
    Object.assign(this.state, { x, y, scale: scaleOf(this.screen.map), rotation: this.viewer.viewport.getRotation(true) });
    this.events.moved();
  }

  /** Show the place that the state tells. */
  goToState() {
    const { viewport } = this.viewer;
    const { x, y, scale, rotation } = this.state;
    viewport.setRotation(rotation, true);
    this.rest(); // the place is known again, also where nothing moves
    if (x === null || y === null || scale === null) {
      viewport.goHome(true);
      return;
    }
    viewport.zoomTo((scale * this.slide.width) / viewport.getContainerSize().x, undefined, true);
    viewport.panTo(new OpenSeadragon.Point(x / this.slide.width, y / this.slide.width), true);
  }

  /**
   * Move to a place, near enough to see outlines.
   *
   * @param {number} x
   * @param {number} y
   */
  goTo(x, y) {
    const { viewport } = this.viewer;
    const near = 3 * (this.slide.mpp?.[0] ?? 0.25); // CSS pixels per level-0 pixel: 3 a µm
    if (scaleOf(this.screen.map) < near) viewport.zoomTo((near * this.slide.width) / viewport.getContainerSize().x);
    viewport.panTo(new OpenSeadragon.Point(x / this.slide.width, y / this.slide.width));
  }

  /**
   * Move by a share of the view.
   *
   * @param {number} right
   * @param {number} down
   */
  panBy(right, down) {
    const { viewport } = this.viewer;
    const [x, y] = [this.screen.width * (0.5 + right), this.screen.height * (0.5 + down)];
    const [toX, toY] = toSlide(this.screen.map, x, y);
    viewport.panTo(new OpenSeadragon.Point(toX / this.slide.width, toY / this.slide.width));
    viewport.applyConstraints();
  }

  /** @param {number} factor */
  zoomBy(factor) {
    this.viewer.viewport.zoomBy(factor);
    this.viewer.viewport.applyConstraints();
  }

  /** @param {number} degrees */
  rotateBy(degrees) {
    this.viewer.viewport.setRotation(this.viewer.viewport.getRotation() + degrees);
  }

  /** Show the whole slide, upright. */
  home() {
    this.viewer.viewport.setRotation(0);
    this.viewer.viewport.goHome();
  }

  /** @param {boolean} shown */
  setImage(shown) {
    this.viewer.world.getItemAt(0)?.setOpacity(shown ? 1 : 0);
  }

  /** Return the middle of the view. */
  get middle() {
    return toSlide(this.screen.map, this.screen.width / 2, this.screen.height / 2);
  }

  /** Return the box of the slide that is in view. */
  get box() {
    return viewBox(this.screen.map, this.screen.width, this.screen.height);
  }

  /** Return the corners of the view on the slide. */
  get corners() {
    const { map, width, height } = this.screen;
    return [toSlide(map, 0, 0), toSlide(map, width, 0), toSlide(map, width, height), toSlide(map, 0, height)];
  }

  /**
   * Frame a nucleus and the region of the filter.
   *
   * @param {Point[] | null} outline
   */
  select(outline) {
    this.frame.replaceChildren();
    const { region } = this.state;
    for (const [name, polygon] of /** @type {[string, Point[] | null][]} */ ([["region", region], ["selected", outline]])) {
      if (!polygon?.length) continue;
      const points = polygon.join(" ");
      this.frame.append(svgElement("polygon", { class: `${name} under`, points }), svgElement("polygon", { class: name, points }));
    }
  }

  /** @param {string} tool */
  setTool(tool) {
    this.tool = tool;
    this.dropPath();
    this.place.dataset.tool = tool;
  }

  /** @param {PointerEvent} event */
  beginPath(event) {
    if (event.button !== 0 || this.path.length) return;
    this.overlay.setPointerCapture(event.pointerId);
    this.path = [this.pointOf(event)];
    event.stopPropagation();
  }

  /** @param {PointerEvent} event */
  extendPath(event) {
    if (!this.path.length) return;
    const point = this.pointOf(event);
    if (this.tool === "region" && !event.shiftKey) this.path = rectangle(this.path[0], point);
    else this.path.push(point);
    this.sketch.setAttribute("points", [...this.path, this.path[0]].join(" "));
    event.stopPropagation();
  }

  /** @param {PointerEvent} event */
  closePath(event) {
    event.stopPropagation();
    const path = thinned(this.path, 3);
    this.dropPath();
    const xs = path.map(([x]) => x);
    const ys = path.map(([, y]) => y);
    const wide = Math.max(...xs) - Math.min(...xs) > 4 || Math.max(...ys) - Math.min(...ys) > 4;
    if (path.length > 2 && wide) this.events.drawn(path.map(([x, y]) => toSlide(this.screen.map, x, y)));
    else if (path.length) this.events.picked(toSlide(this.screen.map, ...path[0]), 6 / scaleOf(this.screen.map));
  }

  /** Forget the path that is being drawn. */
  dropPath() {
    this.path = [];
    this.sketch.removeAttribute("points");
  }

  /**
   * Return where a pointer is on the picture.
   *
   * @param {PointerEvent} event
   * @returns {Point}
   */
  pointOf(event) {
    const { left, top } = this.overlay.getBoundingClientRect();
    return [event.clientX - left, event.clientY - top];
  }

  /**
   * Return where a point of the slide is on the page; for tests and tools.
   *
   * @param {number} x
   * @param {number} y
   * @returns {Point}
   */
  onPage(x, y) {
    const { left, top } = this.overlay.getBoundingClientRect();
    const [u, v] = toScreen(this.screen.map, x, y);
    return [left + u, top + v];
  }

  /** Return whether the image and the nuclei that the view needs are on the screen; for tests and measurements. */
  get settled() {
    const image = this.viewer.world.getItemAt(0);
    return this.nuclei.settled && (!this.slide.image || image?.getFullyLoaded() === true);
  }

  /** Free everything. */
  destroy() {
    this.gone = true;
    this.nuclei.destroy();
    this.viewer.destroy();
    this.place.replaceChildren();
  }
}

/**
 * Return the corners of a rectangle.
 *
 * @param {Point} one
 * @param {Point} other
 * @returns {Point[]}
 */
function rectangle([x1, y1], [x2, y2]) {
  return [[x1, y1], [x2, y1], [x2, y2], [x1, y2]];
}

/**
 * Return what OpenSeadragon asks for tiles; without an image it has a size and no tiles.
 *
 * @param {Slide} slide
 * @returns {object}
 */
function tileSource(slide) {
  const { width, height, image } = slide;
  const version = isStatic ? "" : `?v=1`;
  const maxLevel = image?.max_level ?? Math.ceil(Math.log2(Math.max(width, height)));
  return {
    width,
    height,
    tileSize: image?.tile_size ?? 512,
    tileOverlap: 0,
    minLevel: Math.min(9, maxLevel), // one tile shows it all there
    maxLevel,
    /** @param {number} level @param {number} x @param {number} y */
    getTileUrl: (level, x, y) => slidePath(slide.id, `image/${level}/${x}_${y}.jpg${version}`),
    /** @param {number} level @param {number} x @param {number} y */
    tileExists: (level, x, y) => image !== null && level <= maxLevel && holdsTile(image, level, x, y),
  };
}

/**
 * Return whether there is a tile of the image; a share holds the finer ones of its region only.
 *
 * @param {import("./types.js").ImageInfo} image
 * @param {number} level
 * @param {number} x
 * @param {number} y
 * @returns {boolean}
 */
function holdsTile({ tile_size: size, max_level: maxLevel, region, whole_level: whole }, level, x, y) {
  if (!region || whole === undefined || level <= whole) return true;
  const width = size * 2 ** (maxLevel - level);
  return areaOf(intersection([x * width, y * width, (x + 1) * width, (y + 1) * width], region)) > 0;
}
