//! The constructor is written for any lifetime of its target: so the device is not for ever.
//! error: lifetime may not live long enough

// ctr {
fn ctr<'t>(setup: &mut Setup<'t, Self>, _: &Args) -> Result<impl PinInit<Data<'t>, Error>, Refused> {
    let device: Device<'static> = setup.device(c"/dev/null")?;
    Ok(Ok(Data { device, linear: setup.linear(device, 0), work: setup.work::<Job>()?, info: setup.info() }))
}
// }
