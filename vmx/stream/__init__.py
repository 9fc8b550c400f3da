"""The migration stream: guest pages and the hand-over, from the source's vmx to the destination's (PROTOCOL.md).

Source, in the loop of its vmx:

    streams = await SourceStreams.connect(StreamSpec(secret, source_address, destination_address, port, ram_bytes))
    with memory.mapped(writable=False) as mapped:
        sent = await asyncio.to_thread(streams.send_iteration, 0, runs, mapped)      # returns when all is placed
        ...
    offset = await streams.control.send_device_state(chunk, 0, last=True)
    ready = await streams.control.receive(timeout_s)                                 # ControlMessage(READY)
    await streams.control.send(ControlMessage(ControlCode.COMMIT, epoch))
    resumed = await streams.control.receive(timeout_s)
    await streams.close()

Destination:

    streams = DestinationStreams.listen(ReceiverSpec(secret, vmotion_address, (source_address,)), memory)
    ...tell the source streams.port...
    await streams.accept(deadline_s)
    match await streams.receive(timeout_s):                      # pages are placed and acknowledged meanwhile
        case DeviceStateChunk(offset, data, last): ...
        case ControlMessage(ControlCode.COMMIT, epoch): ...
    await streams.control.send(ControlMessage(ControlCode.READY))
    await streams.control.send_digests(streams.digests)          # where verification was asked for
    await streams.close()

Where disks move too, both specs say which (`disks`), and a source's copier and mirror write into `streams.disks[key]`:

    await asyncio.to_thread(copy_in_bulk, streams.disks[key])     # DiskSink: write_bulk; write_mirrored from others
    await streams.finish_disks()                                  # all bulk data is durable at the destination
    ...the guest is stopped, its mirror has ended...
    await streams.finish_disks(final=True)                        # all of it is; READY may follow

The destination gives `DestinationStreams.listen` a sink for each disk, and sees nothing of them but `disks_final`.

`streams.abort(reason)` stops a source's pages and disks at once from any thread; `streams.progress()` may be polled by
anybody.
Every failure is a StreamError (errors.py), raised at the owner's next call.
"""

from vmx.stream.control import ControlChannel, DeviceStateChunk, DigestsReceived, DisksReceived, Received
from vmx.stream.disk_sender import RemoteDisk
from vmx.stream.errors import DiskFaultCode, DiskPlacementFailed, RemoteDiskFailed, StreamError
from vmx.stream.frames import ControlCode, ControlMessage
from vmx.stream.handshake import OLDEST_STREAM_VERSION, STREAM_VERSION
from vmx.stream.receiver import DestinationStreams, ReceiveProgress
from vmx.stream.sender import IterationSent, SendProgress, SourceStreams
from vmx.stream.spec import DiskExtent, Encryption, ReceiverSpec, StreamSecret, StreamSpec, StreamTimeouts

__all__ = [
    "OLDEST_STREAM_VERSION",
    "STREAM_VERSION",
    "ControlChannel",
    "ControlCode",
    "ControlMessage",
    "DestinationStreams",
    "DeviceStateChunk",
    "DigestsReceived",
    "DiskExtent",
    "DiskFaultCode",
    "DiskPlacementFailed",
    "DisksReceived",
    "Encryption",
    "IterationSent",
    "ReceiveProgress",
    "Received",
    "RemoteDisk",
    "RemoteDiskFailed",
    "ReceiverSpec",
    "SendProgress",
    "SourceStreams",
    "StreamError",
    "StreamSecret",
    "StreamSpec",
    "StreamTimeouts",
]
