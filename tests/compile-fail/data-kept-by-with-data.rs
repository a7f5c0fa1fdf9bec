//! What a bio lends of the data is lent for the call, as what `map` gets.
//! error: borrowed data escapes outside of closure

        // map {
        bio.with_data(|data, bio| {
            keep(data.device);
            bio.complete(BlkStatus::OK)
        })
        // }
