// What the modules of the viewer's page compute; run by tests/viewer/test_page_script.py with `node --test`.
import assert from "node:assert/strict";
import { test } from "node:test";

import { bandIndices, lineIndices, outlineCenters, outlineMesh, readDensity, readOutlines, readPoints } from "../../../cellvit/viewer/page/binary.js";
import { arranged } from "../../../cellvit/viewer/page/cohort.js";
import { classTexture, densityPicture, largestCount, oklch, parseColor, rampColor, shades } from "../../../cellvit/viewer/page/color.js";
import { inside, roundLength, scaleOf, thinned, tilesIn, toScreen, toSlide, viewBox, zoomFor } from "../../../cellvit/viewer/page/geometry.js";
import { commandOf } from "../../../cellvit/viewer/page/keys.js";
import { nextColor } from "../../../cellvit/viewer/page/labels-panel.js";
import { drawKind } from "../../../cellvit/viewer/page/nuclei.js";
import { decodeState, encodeState, filterOf, freshState, typeFilter } from "../../../cellvit/viewer/page/state.js";
import { TileStore } from "../../../cellvit/viewer/page/store.js";

/** Little-endian bytes of numbers: ["u", ...] of 32 bits, ["f", ...] floats, ["b", ...] bytes. */
function packed(...parts) {
  const arrays = { u: Uint32Array, f: Float32Array, b: Uint8Array };
  const bytes = parts.flatMap(([kind, ...values]) => [...new Uint8Array(new arrays[kind](values).buffer)]);
  return new Uint8Array(bytes).buffer;
}

const square = { count: 1, start: new Uint32Array([0, 4]), xy: new Float32Array([0, 0, 10, 0, 10, 10, 0, 10]) };

test("tiles of points are read with and without values", () => {
  const plain = readPoints(packed(["u", 2, 7, 9], ["f", 1, 2, 3, 4], ["b", 5, 1]), false);
  assert.deepEqual([[...plain.row], [...plain.x], [...plain.y], [...plain.type], plain.value], [[7, 9], [1, 2], [3, 4], [5, 1], null]);
  const valued = readPoints(packed(["u", 1, 7], ["f", 1, 3, NaN], ["b", 2]), true);
  assert.ok(Number.isNaN(valued.value[0]));
  assert.equal(readPoints(packed(["u", 0]), true).count, 0);
  assert.throws(() => readPoints(packed(["u", 2, 7]), false), /ends before byte/);
});

test("tiles of outlines and counts are read", () => {
  const tile = readOutlines(packed(["u", 1, 4, 6, 0, 4], ["f", ...square.xy], ["b", 3]), false);
  assert.deepEqual([...tile.start], [0, 4]);
  const { x, y } = outlineCenters(tile);
  assert.deepEqual([x[0], y[0]], [5, 5]);
  const density = readDensity(packed(["u", 2, 1, 4, 6]));
  assert.deepEqual([density.classes, density.grid, [...density.count]], [2, 1, [4, 6]]);
});

test("a mesh has every vertex twice, moved apart by the width of the line", () => {
  const { vertices, owner, start } = outlineMesh(square, 0);
  assert.deepEqual([[...start], [...owner]], [[0, 4], [0, 0, 0, 0, 0, 0, 0, 0]]);
  assert.deepEqual([...vertices.slice(0, 8)], [0, 0, -1, -1, 0, 0, 1, 1]); // the corner sticks out on both sides
  assert.deepEqual([...lineIndices(start)], [0, 2, 2, 4, 4, 6, 6, 0]);
  assert.deepEqual([...bandIndices(start).slice(-6)], [6, 7, 0, 0, 7, 1]);
});

test("a mesh leaves fine detail out but no nucleus", () => {
  const ring = Array.from({ length: 40 }, (_, i) => [10 * Math.cos((i * Math.PI) / 20), 10 * Math.sin((i * Math.PI) / 20)]);
  const tile = { count: 2, start: new Uint32Array([0, 40, 44]), xy: new Float32Array([...ring.flat(), ...square.xy]) };
  const { start } = outlineMesh(tile, 4);
  assert.ok(start[1] >= 12 && start[1] <= 20, `${start[1]} vertices`);
  assert.equal(start[2] - start[1], 4);
  assert.deepEqual([...outlineMesh(tile, 1000).start], [0, 3, 6]);
});

test("screen and slide are inverse, also turned", () => {
  const map = { a: 0.3, b: 0.4, c: -0.4, d: 0.3, e: 20, f: -7 };
  const [x, y] = toSlide(map, ...toScreen(map, 123, 456));
  assert.ok(Math.hypot(x - 123, y - 456) < 1e-9);
  assert.equal(scaleOf(map), 0.5);
  const box = viewBox(map, 100, 50);
  for (const corner of [[0, 0], [100, 50]]) {
    const [u, v] = toSlide(map, ...corner);
    assert.ok(box[0] <= u && u <= box[2] && box[1] <= v && v <= box[3]);
  }
});

test("tiles cover a view, the middle first, and stay inside of the tree", () => {
  assert.deepEqual(tilesIn([0, 0, 255, 255], 1024, 2), [{ z: 2, x: 0, y: 0 }]);
  const tiles = tilesIn([-500, 300, 1e6, 700], 1024, 2);
  assert.deepEqual(tiles.map(({ x, y }) => `${x}_${y}`).sort(), ["0_1", "0_2", "1_1", "1_2", "2_1", "2_2", "3_1", "3_2"]);
  assert.deepEqual(tilesIn([10, 10, 10, 5], 1024, 2), []);
  assert.equal(zoomFor(1, 1024, 9, 512), 1);
  assert.deepEqual([zoomFor(1000, 1024, 3), zoomFor(1e-6, 1024, 3)], [3, 0]);
});

test("lengths, paths and polygons", () => {
  assert.deepEqual([0.3, 1, 140, 70, 26].map(roundLength), [0.2, 1, 100, 50, 20]);
  assert.deepEqual(thinned([[0, 0], [1, 0], [5, 0]], 3), [[0, 0], [5, 0]]);
  assert.ok(inside([[0, 0], [4, 0], [4, 4], [0, 4]], 1, 3) && !inside([[0, 0], [4, 0], [4, 4], [0, 4]], 5, 3));
});

test("colours: what is no colour is grey, the map of numbers grows evenly lighter", () => {
  assert.deepEqual([parseColor("#63f0FF"), parseColor("<b>red</b>")], [[99, 240, 255], [128, 128, 128]]);
  assert.deepEqual(oklch(1, 0, 0), [255, 255, 255]);
  const luminance = ([r, g, b]) => 0.2126 * r + 0.7152 * g + 0.0722 * b;
  const steps = Array.from({ length: 11 }, (_, i) => luminance(rampColor(i / 10)));
  assert.ok(steps.every((value, i) => i === 0 || value > steps[i - 1] + 5), steps.join());
  assert.deepEqual([...shades(new Float32Array([1, 2, 3, 9, NaN]), 1, 3)], [0, 127, 254, 254, 255]);
  assert.deepEqual([...shades(new Float32Array([4]), 4, 4)], [0]);
});

test("density shows visible types only, in their colours, the same each time", () => {
  const texture = classTexture([{ id: 0, color: "#102030" }, { id: 1, color: "#ff0000" }], new Set([0]));
  const tile = { classes: 2, grid: 2, count: new Uint32Array([9, 9, 0, 0, 3, 0, 0, 1]) };
  assert.equal(largestCount(tile, texture), 3);
  const picture = densityPicture(tile, texture, null, 4);
  assert.deepEqual([...picture.slice(0, 3)], [255, 0, 0]);
  assert.ok(picture[3] > picture[15] && picture[7] === 0);
  assert.deepEqual(densityPicture(tile, texture, null, 4), picture);
});

test("the address keeps a view, and nonsense in it does no harm", () => {
  const state = {
    ...freshState("a b/ü"), x: 10.5, y: 20, scale: 0.25, rotation: 30, color: "area_um2", range: [1, 2.5], hidden: [2, 3],
    minProb: 0.5, ranges: { area_um2: [10, null], "odd name": [null, -3] }, region: [[0, 0], [10, 0], [10, 5]], opacity: 0.5, draw: "points", off: ["image"],
  };
  assert.deepEqual(decodeState(encodeState(state)), state);
  assert.equal(encodeState(freshState()), "");
  const odd = decodeState("x=NaN&y=1&scale=-2&rotation=hello&range=1&hidden=a,2,900&min_prob=7&region=1,2,3&opacity=-1&draw=rm&only.a=,");
  assert.deepEqual(odd, { ...freshState(), y: 1, hidden: [2], minProb: 1, opacity: 0 });
  assert.deepEqual(filterOf(state), { min_prob: "0.5", "area_um2.min": "10", "odd name.max": "-3", polygon: "0,0,10,0,10,5" });
  assert.deepEqual(typeFilter(state, [{ id: 1 }, { id: 2 }]), { classes: "1" });
  assert.deepEqual(typeFilter(freshState(), [{ id: 1 }]), {});
});

test("keys: letters without regard to case, Shift counts for them alone", () => {
  const commands = ["l", "Shift+l", "?", "Ctrl+z", "ArrowUp"].map((key) => ({ keys: [key] }));
  const press = (key, held = {}) => commandOf(commands, { key, shiftKey: false, ctrlKey: false, metaKey: false, altKey: false, ...held })?.keys[0];
  assert.equal(press("L", { shiftKey: true }), "Shift+l");
  assert.equal(press("l"), "l");
  assert.equal(press("?", { shiftKey: true }), "?");
  assert.equal(press("z", { metaKey: true }), "Ctrl+z");
  assert.equal(press("l", { ctrlKey: true }), undefined);
  assert.equal(press("ArrowUp"), "ArrowUp");
});

test("slides are found and sorted", () => {
  const slide = (name, nuclei, area, warnings = [], error = null) => ({ name, nuclei, area_mm2: area, warnings, error });
  const slides = [slide("b10", 5, 1), slide("b9", 50, 100, ["thick"]), slide("A", null, null, [], "broken")];
  const names = (text, order) => arranged([...slides], text, order).map(({ name }) => name);
  assert.deepEqual(names("", "given"), ["b10", "b9", "A"]);
  assert.deepEqual(names("", "name"), ["A", "b9", "b10"]);
  assert.deepEqual(names("B", "nuclei"), ["b9", "b10"]);
  assert.deepEqual(names("", "density"), ["b10", "b9", "A"]);
  assert.deepEqual(names("", "warnings"), ["A", "b9", "b10"]);
});

test("a new class gets the first colour that none has", () => {
  assert.equal(nextColor(["#aa0000", "#00bb00"], [{ name: "x", color: "#AA0000", count: 0 }]), "#00bb00");
  assert.equal(nextColor(["#aa0000"], [{ name: "x", color: "#aa0000", count: 0 }]), "#aa0000");
  assert.equal(nextColor([], []), "#808080");
});

test("nuclei are drawn as density, points or outlines, as fits", () => {
  const nuclei = { count: 1e6, bounds: [0, 0, 40000, 40000], outlines: true };
  const kind = (scale, draw = "auto", change = {}) =>
    drawKind({ mpp: [0.25, 0.25], nuclei: { ...nuclei, ...change } }, { draw }, scale, [0, 0, 1000 / scale, 800 / scale]);
  assert.deepEqual([0.02, 0.1, 0.4].map((scale) => kind(scale)), ["density", "points", "outlines"]);
  assert.equal(kind(0.4, "auto", { outlines: false }), "points");
  assert.equal(kind(0.02, "points"), "density"); // a million points would stop the page
  assert.equal(kind(0.4, "points"), "points");
  assert.equal(kind(0.4, "density"), "density");
});

test("the store loads what is wanted, gives up the rest and forgets the oldest", async () => {
  const released = [];
  const failed = [];
  const started = [];
  const waiting = new Map();
  const store = new TileStore({
    load: ({ key }, signal) =>
      new Promise((resolve, reject) => {
        started.push(key);
        waiting.set(key, { resolve, reject });
        signal.addEventListener("abort", () => reject(new Error("aborted")));
      }),
    release: (tile) => released.push(tile), size: () => 10, changed: () => {}, failed: (error) => failed.push(error.message), limit: 20, atOnce: 2,
  });
  const want = (...keys) => store.want(keys.map((key) => ({ key, kind: "points", tile: { z: 0, x: 0, y: 0 } })));
  const arrive = async (key) => {
    waiting.get(key).resolve(key);
    await new Promise(setImmediate);
  };
  want("a", "b", "c");
  assert.deepEqual(started, ["a", "b"]);
  want("b", "c");
  await new Promise(setImmediate);
  await arrive("b");
  await arrive("c");
  assert.deepEqual([store.complete, store.get("b"), failed], [true, "b", []]);
  want("d", "b");
  await arrive("d");
  assert.deepEqual(released, ["c"]);
  want("e");
  waiting.get("e").reject(new Error("gone"));
  await new Promise(setImmediate);
  assert.deepEqual([failed, store.complete], [["gone"], true]);
  store.retry();
  assert.equal(started.filter((key) => key === "e").length, 2);
  store.clear();
  assert.equal(store.bytes, 0);
});
