//! As `token-of-another-bio`, on the way back.
//! error: lifetime may not live long enough

// items {
fn swap<'a, 'b>(one: EndBio<'a, Program>, other: EndBio<'b, Program>) -> Ended<'a> {
    let _ = one.pass_on();
    other.pass_on()
}
// }
