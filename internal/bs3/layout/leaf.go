package layout

// LeafBlocks is the number of entries of a leaf of the map.
const LeafBlocks = 4096
