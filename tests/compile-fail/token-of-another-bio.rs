//! Device-mapper is told what became of this bio, not of another one.
//! error: lifetime may not live long enough

// items {
fn swap<'a, 'b>(one: MapBio<'a, Program>, other: MapBio<'b, Program>) -> Mapped<'a> {
    let _ = one.complete(BlkStatus::OK);
    other.complete(BlkStatus::OK)
}
// }
