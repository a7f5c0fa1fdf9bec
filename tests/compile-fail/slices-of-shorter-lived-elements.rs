//! What is read from a cell was put in by somebody else: if a cell of long-lived elements passed for one of short-lived ones,
//! a short-lived one could be put in, and be read when it is gone.
//! error: lifetime may not live long enough

// items {
fn shorter<'a>(cell: &'a RcuSliceCell<&'static u64>) -> &'a RcuSliceCell<&'a u64> {
    cell
}
// }
