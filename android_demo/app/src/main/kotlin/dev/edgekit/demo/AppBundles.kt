package dev.edgekit.demo

import dev.edgekit.android.BundleAssets
import java.io.File

/** Bundles that came with the app, and those that were put into [external], its directory that adb and file managers reach. */
class AppBundles(private val assets: BundleAssets, private val external: File?) : BundleSource {
    override fun list(): List<BundleChoice> {
        val shipped = assets.names().map { BundleChoice(it, "in the app", ASSET + it) }
        val copied = external?.listFiles().orEmpty().filter { File(it, "manifest.json").isFile }.sortedBy { it.name }
        return shipped + copied.map { BundleChoice(it.name, "on the device", it.path) }
    }

    override fun prepare(choice: BundleChoice, progress: (done: Long, total: Long) -> Unit): File =
        if (choice.key.startsWith(ASSET)) assets.copy(choice.name, progress) else File(choice.key)

    private companion object {
        const val ASSET = "asset:"
    }
}
