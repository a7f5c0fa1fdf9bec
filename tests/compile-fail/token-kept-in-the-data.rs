//! A token is of no use for the next bio: it cannot be kept in data, which all threads see.
//! error: E0277

// data {
#[pin_data]
struct Data<'t> {
    #[pin]
    kept: Mutex<Option<Mapped<'t>>>,
    device: Device<'t>,
    linear: Linear<'t>,
    work: Work<'t>,
    info: &'t TargetInfo,
}
// }
// ctr {
fn ctr<'t>(setup: &mut Setup<'t, Self>, _: &Args) -> Result<impl PinInit<Data<'t>, Error>, Refused> {
    Err::<Result<Data<'t>, Error>, _>(c"never".into())
}
// }
