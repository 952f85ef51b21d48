// @ts-check
/**
 * What the server answers, as its contract says. Coordinates are level-0 pixels: x right, y down.
 *
 * @typedef {[number, number]} Point
 * @typedef {[number, number, number, number]} Box  left, top, right, bottom
 *
 * @typedef {{id: number, name: string, color: string, count: number}} NucleusType
 * @typedef {{name: string, color: string, count: number}} LabelClass
 *
 * @typedef {object} Column
 * @property {string} name
 * @property {string} label
 * @property {string | null} unit
 * @property {"number" | "category"} kind
 * @property {number} low  2nd percentile
 * @property {number} high  98th percentile
 * @property {number} min
 * @property {number} max
 * @property {string[]} [values]  of a category
 *
 * @typedef {object} NucleiInfo
 * @property {number} count
 * @property {Box} bounds
 * @property {number} tile_base
 * @property {number} max_zoom
 * @property {boolean} outlines
 * @property {string | null} outlines_note
 * @property {NucleusType[]} classes
 * @property {string | null} [types_learnt_on]  on other tissue they are a guess
 * @property {Column[]} columns
 *
 * @typedef {object} LabelInfo
 * @property {boolean} editable
 * @property {string | null} reason
 * @property {number} count
 * @property {LabelClass[]} classes
 * @property {string[]} [palette]  colours of new classes, in order
 * @property {string} [note]  what became of labels of earlier nuclei
 *
 * @typedef {{name: string, label: string, polygons: Point[][]}} Layer
 *
 * @typedef {object} ImageInfo
 * @property {number} tile_size
 * @property {number} max_level
 * @property {string | null} note
 * @property {Box} [region]  of a share: what it holds of the levels above `whole_level`
 * @property {number} [whole_level]
 *
 * @typedef {object} Slide
 * @property {string} id
 * @property {string} name
 * @property {number} width
 * @property {number} height
 * @property {Point | null} mpp
 * @property {ImageInfo | null} image
 * @property {string | null} [image_note]
 * @property {NucleiInfo | null} nuclei
 * @property {Layer[]} layers
 * @property {string[]} warnings
 * @property {string | null} [error]
 * @property {LabelInfo} labels
 * @property {boolean} classifier
 * @property {number} suggestions
 * @property {number} revision
 *
 * @typedef {object} SlideSummary
 * @property {string} id
 * @property {string} name
 * @property {"slide" | "image"} kind
 * @property {number | null} nuclei
 * @property {number | null} area_mm2
 * @property {{name: string, color: string, count: number}[]} classes
 * @property {string[]} warnings
 * @property {string | null} error
 * @property {boolean} has_image
 * @property {boolean} thumbnail
 * @property {number} labels
 *
 * @typedef {{title: string, slides: SlideSummary[]}} Cohort
 *
 * @typedef {object} Nucleus
 * @property {number} row
 * @property {string} [id]
 * @property {number} x
 * @property {number} y
 * @property {number} class  id of its type
 * @property {string} [class_name]
 * @property {number | null} probability
 * @property {Record<string, number> | null} probabilities
 * @property {number | null} area_um2
 * @property {Point[] | null} outline
 * @property {{label: string, value: number | string | null, unit: string | null}[]} measurements
 * @property {{row: number, distance_um: number | null, distance_px?: number, class: number}[]} neighbors
 * @property {string | null} label
 *
 * @typedef {{row: number, class: string}} Label
 * @typedef {{row: number, x: number, y: number, why: string}} Suggestion
 */
export {};
